"""libstompp for tests as a module of WebAssembly: under wasmtime, with the methods of libstompp.Library."""

import ctypes
from ctypes import c_float, c_int32, c_int64, c_uint32

import torch
import wasmtime
from libstompp import OK, Shape, StomppError

# The structs of stompp.h where pointers have 32 bits.


class Description(ctypes.Structure):
    _fields_ = [(name, c_int32) for name in ("inputs", "outputs", "layers")]
    _fields_ += [("implementation", c_uint32), ("file_bytes", c_int64), ("weight_bytes", c_int64)]


class Input(ctypes.Structure):
    _fields_ = [("data", c_uint32), ("shape", Shape)]


class Output(ctypes.Structure):
    _fields_ = [("data", c_uint32), ("capacity", c_int64), ("shape", Shape)]


class Value(ctypes.Structure):
    _fields_ = [(name, c_uint32) for name in ("name", "layer", "is_bits", "data")]
    _fields_ += [("shape", Shape), ("strides", c_int64 * 8)]


class RunOptions(ctypes.Structure):
    _fields_ = [("threads", c_int32), ("observe", c_uint32), ("context", c_uint32)]


class Library:
    def __init__(self, path):
        engine = wasmtime.Engine()
        self.store, self.observe = wasmtime.Store(engine), None
        self.store.set_wasi(wasmtime.WasiConfig())
        linker = wasmtime.Linker(engine)
        linker.define_wasi()
        kind = wasmtime.FuncType([wasmtime.ValType.i32()] * 2, [])
        linker.define_func("stompp", "observe", kind, lambda context, value: self.observe(Seen(self, value)))
        module = wasmtime.Module.from_file(engine, str(path))
        self.exports = linker.instantiate(self.store, module).exports(self.store)
        self.c("_initialize")

    def c(self, name, *args):
        return self.exports[name](self.store, *args)

    def put(self, data):
        """The address of a copy of bytes or of a struct."""
        data = bytes(data)
        address = self.c("malloc", len(data))
        assert address != 0
        self.exports["memory"].write(self.store, data, address)
        return address

    def get(self, kind, address):
        data = self.exports["memory"].read(self.store, address, address + ctypes.sizeof(kind))
        return kind.from_buffer_copy(data)

    def text(self, address):
        return self.get(ctypes.c_char * 512, address).value if address else None

    def call(self, name, *args):
        error = self.put(bytes(512))
        status, text = self.c(name, *args, error), self.text(error).decode()
        self.c("free", error)
        if status != OK:
            raise StomppError(status, text)

    def implementations(self):
        names = []
        while (name := self.text(self.c("stompp_implementation", len(names)))) is not None:
            names.append(name.decode())
        return names

    def open(self, data, implementation=None):
        name = self.put(implementation.encode() + b"\0") if implementation else 0
        file, options, handle = self.put(data), self.put(c_uint32(name)), self.put(c_uint32())
        self.call("stompp_open_memory", file, len(data), options, handle)
        self.c("free", file)
        return Network(self, self.get(c_uint32, handle).value)


class Seen:
    """A value between layers, as libstompp.Value is one."""

    def __init__(self, library, address):
        self.library, self.value = library, library.get(Value, address)
        self.name = library.text(self.value.name)

    def tensor(self):
        sizes, strides = self.value.shape.list(), list(self.value.strides)
        dtype = torch.float32
        if self.value.is_bits:
            sizes[-1], dtype = -(-sizes[-1] // 32), torch.int32
        count = torch.Size(sizes).numel()
        flat = torch.frombuffer(bytearray(self.library.get(c_float * count, self.value.data)), dtype=dtype)
        return flat.reshape(sizes) if self.value.is_bits else flat.as_strided(sizes, strides[: len(sizes)]).clone()


class Network:
    def __init__(self, library, handle):
        self.library, self.handle = library, handle

    def implementation(self):
        address = self.library.put(Description())
        self.library.call("stompp_describe", self.handle, address)
        return self.library.text(self.library.get(Description, address).implementation).decode()

    def run(self, x, threads=1, observe=None):
        """The one output for the one input."""
        library = self.library
        numbers = library.put(x.float().contiguous().numpy().tobytes())
        given = library.put(Input(numbers, Shape.of(x.shape)))
        shape = library.put(Shape())
        library.call("stompp_plan", self.handle, given + Input.shape.offset, 1, shape, 0)
        sizes = library.get(Shape, shape).list()
        count = torch.Size(sizes).numel()
        taken = library.put(Output(library.put(bytes(4 * count)), count))
        library.observe = observe
        observer = library.c("stompp_observer") if observe else 0
        options = library.put(RunOptions(threads, observer, 0))
        library.call("stompp_run", self.handle, given, 1, taken, 1, options)
        data = library.get(c_float * count, library.get(Output, taken).data)
        return [torch.frombuffer(bytearray(data), dtype=torch.float32).reshape(sizes)]
