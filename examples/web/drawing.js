/**
 * What a person draws, and how it becomes an image as the network knows them.
 *
 * The digits of the training data were made from bitmaps of 32 x 32 pixels that the digit fills: a value from 0 to 16
 * counts the black pixels of a block of 4 x 4. Lines are kept as points in [0, 1] and drawn anew at that size.
 */

export const SIZE = 8;
const BLOCK = 4;
const BITMAP = SIZE * BLOCK;
const PEN = 2.2; // half the width of a line, in pixels of the bitmap
const MARGIN = PEN + 0.3;

/** Returns the squared distance of a point to the line from a to b. */
function squaredDistance(x, y, a, b) {
  const [dx, dy] = [b[0] - a[0], b[1] - a[1]];
  const length = dx * dx + dy * dy;
  const along = length === 0 ? 0 : Math.min(1, Math.max(0, ((x - a[0]) * dx + (y - a[1]) * dy) / length));
  return (x - a[0] - along * dx) ** 2 + (y - a[1] - along * dy) ** 2;
}

/** Moves and scales lines so that they fill the bitmap, and keeps their proportions. */
function fitted(lines) {
  const points = lines.flat();
  const [xs, ys] = [points.map((p) => p[0]), points.map((p) => p[1])];
  const [left, right, top, bottom] = [Math.min(...xs), Math.max(...xs), Math.min(...ys), Math.max(...ys)];
  const room = BITMAP - 2 * MARGIN;
  const scale = room / Math.max(right - left, bottom - top, 0.05); // a dot does not fill the bitmap
  const [x0, y0] = [(BITMAP - (right - left) * scale) / 2, (BITMAP - (bottom - top) * scale) / 2];
  return lines.map((line) => line.map(([x, y]) => [x0 + (x - left) * scale, y0 + (y - top) * scale]));
}

/** Returns the 64 values of an image, row by row, for lines of [x, y] points. */
export function imageOf(lines) {
  const image = new Array(SIZE * SIZE).fill(0);
  if (lines.length === 0) return image;
  const segments = fitted(lines).flatMap((line) => line.map((point, i) => [line[Math.max(i - 1, 0)], point]));
  for (let y = 0; y < BITMAP; ++y) {
    for (let x = 0; x < BITMAP; ++x) {
      const black = segments.some(([a, b]) => squaredDistance(x + 0.5, y + 0.5, a, b) <= PEN * PEN);
      if (black) image[Math.floor(y / BLOCK) * SIZE + Math.floor(x / BLOCK)] += 1;
    }
  }
  return image;
}

/** A canvas that is drawn on with a pointer or with the keyboard; calls `changed` with its lines. */
export class DrawingBoard {
  #lines = [];
  #pointer = null; // the one that draws
  #pen = [0.5, 0.3]; // of the keyboard
  #penDown = false;
  #showPen = false;

  constructor(canvas, changed) {
    this.canvas = canvas;
    this.changed = changed;
    canvas.addEventListener("pointerdown", (event) => this.#begin(event));
    canvas.addEventListener("pointermove", (event) => this.#move(event));
    for (const name of ["pointerup", "pointercancel"]) canvas.addEventListener(name, () => (this.#pointer = null));
    canvas.addEventListener("keydown", (event) => this.#key(event));
    canvas.addEventListener("blur", () => {
      this.#penDown = this.#showPen = false;
      this.draw();
    });
    new ResizeObserver(() => this.draw()).observe(canvas);
  }

  clear() {
    this.#lines = [];
    this.#penDown = false;
    this.draw();
  }

  #position(event) {
    const box = this.canvas.getBoundingClientRect();
    return [(event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height];
  }

  #begin(event) {
    if (this.#pointer !== null || event.button !== 0) return;
    this.#pointer = event.pointerId;
    this.#showPen = false;
    if (event.isTrusted) this.canvas.setPointerCapture(event.pointerId);
    this.#lines.push([this.#position(event)]);
    this.#update();
  }

  #move(event) {
    if (event.pointerId !== this.#pointer) return;
    const passed = event.getCoalescedEvents?.() ?? [];
    for (const each of passed.length > 0 ? passed : [event]) this.#lines.at(-1).push(this.#position(each));
    this.#update();
  }

  #key(event) {
    const step = 1 / 24;
    const moves = { ArrowLeft: [-step, 0], ArrowRight: [step, 0], ArrowUp: [0, -step], ArrowDown: [0, step] };
    if (event.key in moves) {
      this.#pen = this.#pen.map((value, i) => Math.min(1, Math.max(0, value + moves[event.key][i])));
      if (this.#penDown) this.#lines.at(-1).push([...this.#pen]);
    } else if (event.key === " ") {
      this.#penDown = !this.#penDown;
      if (this.#penDown) this.#lines.push([[...this.#pen]]);
    } else if (event.key === "Escape" || event.key === "Delete") {
      this.clear();
    } else {
      return;
    }
    event.preventDefault();
    this.#showPen = true;
    this.#update();
  }

  #update() {
    this.draw();
    this.changed(this.#lines);
  }

  draw() {
    const { canvas } = this;
    const pixels = Math.max(1, Math.round(canvas.clientWidth * devicePixelRatio));
    canvas.width = canvas.height = pixels;
    const context = canvas.getContext("2d");
    const style = getComputedStyle(canvas);
    context.strokeStyle = context.fillStyle = style.color;
    context.lineWidth = pixels / 14;
    context.lineCap = context.lineJoin = "round";
    if (this.#lines.length === 0) {
      context.globalAlpha = 0.4;
      context.textAlign = "center";
      context.font = `${pixels / 16}px system-ui, sans-serif`;
      context.fillText("Draw here", pixels / 2, pixels / 2);
      context.globalAlpha = 1;
    }
    for (const line of this.#lines) {
      context.beginPath();
      context.moveTo(line[0][0] * pixels, line[0][1] * pixels);
      for (const [x, y] of line) context.lineTo(x * pixels, y * pixels);
      context.stroke();
    }
    if (!this.#showPen) return;
    context.strokeStyle = style.getPropertyValue("--accent");
    context.lineWidth = 2 * devicePixelRatio;
    context.beginPath();
    context.arc(this.#pen[0] * pixels, this.#pen[1] * pixels, pixels / 24, 0, 2 * Math.PI);
    this.#penDown ? context.fill() : context.stroke();
  }
}
