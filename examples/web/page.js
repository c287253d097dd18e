/** The page: reads what is drawn with both networks, and shows what they say, what they take and what they hold. */

import { DrawingBoard, SIZE, imageOf } from "./drawing.js";
import { loadLibrary } from "./stompp.js";

const NETWORKS = ["packed", "float"];
const ROUNDS = 5; // of the timings, in turns
const ROUND_MILLISECONDS = 30;

const element = (id) => document.getElementById(id);

async function fetched(name) {
  const response = await fetch(name);
  if (!response.ok) throw new Error(`${name}: ${response.status} ${response.statusText}`);
  return response;
}

function make(tag, parent, text = "") {
  const made = document.createElement(tag);
  made.textContent = text;
  parent.append(made);
  return made;
}

const color = (name) => getComputedStyle(document.documentElement).getPropertyValue(name);

const bytes = (count) => (count < 10_000 ? `${count} bytes` : `${Math.round(count / 1000)} KB`);

/** Draws values from 0 to 16 as shades between the colors of -1 and +1. */
function drawImage(canvas, image) {
  canvas.width = canvas.height = SIZE;
  const context = canvas.getContext("2d");
  context.fillStyle = color("--plus");
  context.fillRect(0, 0, SIZE, SIZE);
  context.fillStyle = color("--minus");
  image.forEach((value, i) => {
    context.globalAlpha = value / 16;
    context.fillRect(i % SIZE, Math.floor(i / SIZE), 1, 1);
  });
}

/** Draws words of bits, [1][height][width][channels] or [1][channels], as a square of maps, one for each channel. */
function drawBits(canvas, { bits, sizes }) {
  const channels = sizes.at(-1);
  const [height, width] = sizes.length === 4 ? sizes.slice(1, 3) : [1, 1];
  const across = 2 ** Math.ceil(Math.log2(channels) / 2);
  const [stepX, stepY] = [width + 1, height + 1];
  canvas.width = across * stepX - 1;
  canvas.height = Math.ceil(channels / across) * stepY - 1;
  const context = canvas.getContext("2d");
  const words = Math.ceil(channels / 32);
  const colors = [color("--plus"), color("--minus")];
  for (let channel = 0; channel < channels; ++channel) {
    const [left, top] = [(channel % across) * stepX, Math.floor(channel / across) * stepY];
    for (let pixel = 0; pixel < height * width; ++pixel) {
      const bit = (bits[pixel * words + (channel >> 5)] >>> (channel & 31)) & 1;
      context.fillStyle = colors[bit];
      context.fillRect(left + (pixel % width), top + Math.floor(pixel / width), 1, 1);
    }
  }
}

/** Returns shares that add up to 1 of scores, as the loss of the training had them. */
function softmax(scores) {
  const largest = Math.max(...scores);
  const powers = Array.from(scores, (score) => Math.exp(score - largest));
  const sum = powers.reduce((a, b) => a + b);
  return powers.map((power) => power / sum);
}

const median = (values) => values.toSorted((a, b) => a - b)[values.length >> 1];

/** A network and the part of the page that is about it. */
class Side {
  constructor(name, network, accuracy) {
    this.article = element(name);
    this.network = network;
    this.runner = network.prepare([1, 1, SIZE, SIZE]);
    const facts = this.article.querySelector("dl");
    const { fileBytes, layers } = network.description;
    const binary = layers.filter((layer) => layer.arithmetic === "binary").length;
    this.timeText = this.#fact(facts, "time per image", "…");
    this.#fact(facts, "file", bytes(fileBytes));
    this.#fact(facts, "binary layers", `${binary} of ${layers.length}`);
    this.#fact(facts, "test accuracy", `${accuracy.toFixed(1)} %`);
    this.bars = Array.from({ length: this.runner.outputSize }, (_, digit) => this.#bar(digit));
  }

  #fact(list, name, value) {
    make("dt", list, name);
    return make("dd", list, value);
  }

  #bar(digit) {
    const item = make("li", this.article.querySelector(".scores"));
    make("span", item, digit);
    make("i", item);
    return { item, text: make("b", item) };
  }

  read(image, observe = null) {
    const scores = this.runner.run(image, observe);
    const shares = softmax(scores);
    const digit = shares.indexOf(Math.max(...shares));
    this.article.querySelector(".digit").textContent = digit;
    this.article.dataset.scores = JSON.stringify(Array.from(scores));
    this.bars.forEach(({ item, text }, i) => {
      item.className = i === digit ? "first" : "";
      item.style.setProperty("--share", `${100 * shares[i]}%`);
      text.textContent = `${(100 * shares[i]).toFixed(0)} %`;
    });
  }

  showTime(milliseconds) {
    this.timeText.textContent = `${(1000 * milliseconds).toFixed(0)} µs`;
    this.article.dataset.milliseconds = milliseconds;
  }
}

class Page {
  #pictures = new Map(); // from a value's name to its canvas
  #measuring = false;

  constructor(sides, facts) {
    this.sides = sides;
    this.facts = facts;
    this.board = new DrawingBoard(element("board"), (lines) => this.read(imageOf(lines)));
    element("clear").addEventListener("click", () => {
      this.board.clear();
      this.read(imageOf([]));
    });
    element("measure").addEventListener("click", () => this.measure());
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.redraw());
    this.examples = facts.examples.map((example) => this.#example(example));
    this.#listLayers();
    this.read(facts.examples[Number(location.hash.slice(1)) || 0].pixels);
    this.measure();
  }

  #example({ pixels, label }) {
    const button = make("button", element("examples"));
    button.type = "button";
    button.setAttribute("aria-label", `A test image of ${label}`);
    button.addEventListener("click", () => {
      this.board.clear();
      this.read(pixels);
    });
    const canvas = make("canvas", button);
    drawImage(canvas, pixels);
    return { canvas, pixels };
  }

  #listLayers() {
    for (const layer of this.sides.packed.network.description.layers) {
      const row = make("tr", element("layers"));
      for (const text of [layer.name, layer.arithmetic, layer.weight.join(" × "), layer.weightBytes]) {
        make("td", row, text);
      }
    }
  }

  read(image) {
    this.image = image;
    const { mean, std } = this.facts;
    const input = Float32Array.from(image, (value) => Math.fround(value - mean) / std);
    drawImage(element("seen"), image);
    element("seen").dataset.pixels = JSON.stringify(image);
    this.sides.float.read(input);
    this.sides.packed.read(input, (value) => value.bits !== null && this.#show(value));
  }

  #show(value) {
    if (!this.#pictures.has(value.name)) {
      const figure = make("figure", element("pictures"));
      const canvas = make("canvas", figure);
      const layer = (value.layer || value.name).replace(/_(pack|fused|affine)$/, ""); // what conversion appended
      canvas.setAttribute("role", "img");
      canvas.setAttribute("aria-label", `Bits behind ${layer}`);
      make("strong", make("figcaption", figure), layer);
      figure.lastChild.append(`${value.sizes.slice(1).join(" × ")}: ${bytes(4 * value.bits.length)}`);
      this.#pictures.set(value.name, canvas);
    }
    drawBits(this.#pictures.get(value.name), value);
  }

  /** Colors are those of the canvases' pixels, and do not change with the page's. */
  redraw() {
    this.board.draw();
    this.examples.forEach(({ canvas, pixels }) => drawImage(canvas, pixels));
    this.read(this.image);
  }

  /** Times both networks in turns, and lets the page live between them. */
  async measure() {
    if (this.#measuring) return;
    this.#measuring = true;
    element("measure").disabled = true;
    const times = { packed: [], float: [] };
    for (let round = 0; round < ROUNDS; ++round) {
      for (const name of NETWORKS) {
        times[name].push(this.sides[name].runner.time(ROUND_MILLISECONDS));
        await new Promise((resolve) => setTimeout(resolve));
      }
    }
    const [packed, float] = NETWORKS.map((name) => median(times[name]));
    this.sides.packed.showTime(packed);
    this.sides.float.showTime(float);
    const ratio = float / packed;
    const faster = ratio >= 1 ? `${ratio.toFixed(1)} times as fast` : `${(1 / ratio).toFixed(1)} times slower`;
    element("comparison").textContent =
      `Here and now the packed network is ${faster}. Both run on one thread, an image at a time: the median of ` +
      `${ROUNDS} turns.`;
    element("measure").disabled = false;
    this.#measuring = false;
    document.body.dataset.measured = "yes";
  }
}

async function main() {
  const library = await loadLibrary(await (await fetched("stompp.wasm")).arrayBuffer());
  const facts = await (await fetched("digits.json")).json();
  const sides = {};
  for (const name of NETWORKS) {
    const network = library.open(await (await fetched(`${name}.safetensors`)).arrayBuffer());
    sides[name] = new Side(name, network, facts.accuracy[name]);
  }
  new Page(sides, facts);
  const { implementation } = sides.packed.network.description;
  element("status").textContent = `libstompp in WebAssembly, kernels “${implementation}”, one thread.`;
}

main().catch((error) => {
  element("status").textContent = `This page needs WebAssembly with 128-bit vectors. ${error.message}`;
  element("status").className = "failed";
  throw error;
});
