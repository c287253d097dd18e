/**
 * libstompp in JavaScript: the functions of stompp.h on a WebAssembly module.
 *
 * Structs are written and read at the offsets that C gives them on wasm32, where pointers have 4 bytes and int64_t is
 * aligned to 8.
 */

const SHAPE = { sizes: 8, bytes: 72 };
const INPUT = { shape: 8, bytes: 80 };
const OUTPUT = { capacity: 8, shape: 16, bytes: 88 };
const VALUE = { name: 0, layer: 4, isBits: 8, data: 12, shape: 16, strides: 88 };
const DESCRIPTION = { inputs: 0, outputs: 4, layers: 8, implementation: 12, fileBytes: 16, weightBytes: 24, bytes: 32 };
const LAYER = { name: 0, type: 4, arithmetic: 8, weight: 16, weightBytes: 88, bytes: 96 };
const RUN_OPTIONS = { observe: 4, bytes: 12 };
const ERROR_BYTES = 512;

const ARITHMETIC = ["binary", "binary weights", "float"];

/**
 * Returns what a module imports from WASI. The library asks for environment variables, of which there are none. All
 * else would need a file, and is answered that there is no such descriptor.
 */
function wasiImports(module, library) {
  const badDescriptor = 8;
  const functions = {
    environ_sizes_get(count, bytes) {
      library.view.setUint32(count, 0, true);
      library.view.setUint32(bytes, 0, true);
      return 0;
    },
    environ_get: () => 0,
    proc_exit(code) {
      throw new Error(`the WebAssembly module ended with code ${code}`);
    },
  };
  for (const { module: from, name } of WebAssembly.Module.imports(module)) {
    if (from === "wasi_snapshot_preview1") functions[name] ??= () => badDescriptor;
  }
  return functions;
}

/** Compiles the library from its bytes. */
export async function loadLibrary(bytes) {
  const library = new Library();
  const module = await WebAssembly.compile(bytes);
  const instance = await WebAssembly.instantiate(module, {
    wasi_snapshot_preview1: wasiImports(module, library),
    stompp: { observe: (context, value) => library.observed(value) },
  });
  library.start(instance.exports);
  return library;
}

/** A module in memory, in which networks are opened. */
class Library {
  /** What is called with each value of the run under way, or null. */
  observer = null;

  start(functions) {
    this.functions = functions;
    functions._initialize();
    this.error = this.take(ERROR_BYTES);
  }

  /** The module's memory, which grows: a view is old after each call. */
  get view() {
    return new DataView(this.functions.memory.buffer);
  }

  /** Takes zeroed bytes, to be given back with `free`. */
  take(bytes) {
    const address = this.functions.malloc(bytes);
    if (address === 0) throw new Error(`there is no memory for ${bytes} bytes`);
    new Uint8Array(this.functions.memory.buffer, address, bytes).fill(0);
    return address;
  }

  free(address) {
    this.functions.free(address);
  }

  text(address) {
    if (address === 0) return null;
    const bytes = new Uint8Array(this.functions.memory.buffer, address);
    return new TextDecoder().decode(bytes.subarray(0, bytes.indexOf(0)).slice());
  }

  /** Calls a function of stompp.h whose last argument is the error, and throws what it says. */
  call(name, ...rest) {
    if (this.functions[name](...rest, this.error) !== 0) throw new Error(this.text(this.error));
  }

  writeShape(address, sizes) {
    const { view } = this;
    view.setInt32(address, sizes.length, true);
    sizes.forEach((size, i) => view.setBigInt64(address + SHAPE.sizes + 8 * i, BigInt(size), true));
  }

  readNumbers(address, count) {
    return Array.from({ length: count }, (_, i) => Number(this.view.getBigInt64(address + 8 * i, true)));
  }

  readShape(address) {
    return this.readNumbers(address + SHAPE.sizes, this.view.getInt32(address, true));
  }

  observed(value) {
    const { view } = this;
    const bits = view.getInt32(value + VALUE.isBits, true) !== 0;
    const sizes = this.readShape(value + VALUE.shape);
    const data = view.getUint32(value + VALUE.data, true);
    const rows = sizes.slice(0, -1).reduce((product, size) => product * size, 1);
    this.observer({
      name: this.text(view.getUint32(value + VALUE.name, true)),
      layer: this.text(view.getUint32(value + VALUE.layer, true)),
      sizes,
      bits: bits ? new Uint32Array(view.buffer, data, rows * Math.ceil(sizes.at(-1) / 32)).slice() : null,
    });
  }

  /** Opens the network in the bytes of a packed file. */
  open(bytes) {
    const file = this.take(bytes.byteLength);
    const handle = this.take(4);
    try {
      new Uint8Array(this.functions.memory.buffer, file, bytes.byteLength).set(new Uint8Array(bytes));
      this.call("stompp_open_memory", file, bytes.byteLength, 0, handle);
      return new Network(this, this.view.getUint32(handle, true));
    } finally {
      this.free(handle);
      this.free(file);
    }
  }
}

/** An open network. */
class Network {
  constructor(library, handle) {
    this.library = library;
    this.handle = handle;
    this.description = this.#describe();
  }

  #describe() {
    const { library } = this;
    const address = library.take(DESCRIPTION.bytes);
    library.call("stompp_describe", this.handle, address);
    const { view } = library;
    const description = {
      inputs: view.getInt32(address + DESCRIPTION.inputs, true),
      outputs: view.getInt32(address + DESCRIPTION.outputs, true),
      implementation: library.text(view.getUint32(address + DESCRIPTION.implementation, true)),
      fileBytes: Number(view.getBigInt64(address + DESCRIPTION.fileBytes, true)),
      weightBytes: Number(view.getBigInt64(address + DESCRIPTION.weightBytes, true)),
      layers: Array.from({ length: view.getInt32(address + DESCRIPTION.layers, true) }, (_, i) => this.#layer(i)),
    };
    library.free(address);
    return description;
  }

  #layer(index) {
    const { library } = this;
    const address = library.take(LAYER.bytes);
    library.call("stompp_describe_layer", this.handle, index, address);
    const { view } = library;
    const layer = {
      name: library.text(view.getUint32(address + LAYER.name, true)),
      type: library.text(view.getUint32(address + LAYER.type, true)),
      arithmetic: ARITHMETIC[view.getInt32(address + LAYER.arithmetic, true)],
      weight: library.readShape(address + LAYER.weight),
      weightBytes: Number(view.getBigInt64(address + LAYER.weightBytes, true)),
    };
    library.free(address);
    return layer;
  }

  /** Takes the memory for runs of a network with one input, of these sizes, and one output. */
  prepare(sizes) {
    return new Runner(this, sizes);
  }
}

/** Runs a network on inputs of the same sizes. */
class Runner {
  constructor(network, sizes) {
    const { library } = network;
    this.network = network;
    this.inputSize = sizes.reduce((product, size) => product * size, 1);
    this.input = library.take(INPUT.bytes);
    library.writeShape(this.input + INPUT.shape, sizes);
    this.output = library.take(OUTPUT.bytes);
    library.call("stompp_plan", network.handle, this.input + INPUT.shape, 1, this.output + OUTPUT.shape, 0);
    this.outputSize = library.readShape(this.output + OUTPUT.shape).reduce((product, size) => product * size, 1);
    this.numbers = library.take(4 * this.inputSize);
    this.results = library.take(4 * this.outputSize);
    this.options = library.take(RUN_OPTIONS.bytes);
    const { view } = library;
    view.setUint32(this.input, this.numbers, true);
    view.setUint32(this.output, this.results, true);
    view.setBigInt64(this.output + OUTPUT.capacity, BigInt(this.outputSize), true);
    view.setUint32(this.options + RUN_OPTIONS.observe, library.functions.stompp_observer(), true);
  }

  #run(options) {
    this.network.library.call("stompp_run", this.network.handle, this.input, 1, this.output, 1, options);
  }

  /** Returns the output for an input; `observe`, if given, is called with each value between layers. */
  run(numbers, observe = null) {
    const { library } = this.network;
    new Float32Array(library.functions.memory.buffer, this.numbers, this.inputSize).set(numbers);
    library.observer = observe;
    this.#run(observe === null ? 0 : this.options);
    return new Float32Array(library.functions.memory.buffer, this.results, this.outputSize).slice();
  }

  /** Returns the milliseconds of a run on the last input, the mean over at least `atLeast` milliseconds of runs. */
  time(atLeast) {
    const begin = performance.now();
    let runs = 0;
    let now;
    do {
      for (let i = 0; i < 10; ++i) this.#run(0);
      runs += 10;
      now = performance.now();
    } while (now - begin < atLeast);
    return (now - begin) / runs;
  }
}
