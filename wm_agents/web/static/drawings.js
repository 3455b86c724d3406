// Draws observations: images as they are, known vectors as Gymnasium's renderers would, others as bars.

// Each draws in the pixel coordinates of Gymnasium's renderer, with y upward.
const box = (left, right, bottom, top) => [[left, bottom], [left, top], [right, top], [right, bottom]];
const turn = (points, angle, [x, y]) => {
  const [c, s] = [Math.cos(angle), Math.sin(angle)];
  return points.map(([a, b]) => [a * c - b * s + x, a * s + b * c + y]);
};

class Pen {
  constructor(ctx, height) { this.ctx = ctx; this.height = height; }
  path(points) {
    this.ctx.beginPath();
    for (const [x, y] of points) this.ctx.lineTo(Math.min(4000, Math.max(-4000, x)), this.height - Math.min(4000, Math.max(-4000, y)));
  }
  fill(points, color) { this.path(points); this.ctx.closePath(); this.ctx.fillStyle = color; this.ctx.fill(); }
  line(points, color, width = 1.5) { this.path(points); this.ctx.strokeStyle = color; this.ctx.lineWidth = width; this.ctx.stroke(); }
  dot([x, y], radius, color) {
    this.ctx.beginPath(); this.ctx.arc(x, this.height - y, radius, 0, 7); this.ctx.fillStyle = color; this.ctx.fill();
  }
  flag([x, y], pole) { this.line([[x, y], [x, y + 50]], pole); this.fill([[x, y + 50], [x, y + 40], [x + 25, y + 45]], "#cccc00"); }
}

const paper = (pen, width, height, color = "#ffffff") => pen.fill(box(0, width, 0, height), color);

function cartPole(pen, obs) {
  paper(pen, 600, 400);
  const at = [300 + 125 * obs[0], 100], axle = [at[0], at[1] + 7.5];
  pen.line([[0, 100], [600, 100]], "#000");
  pen.fill(turn(box(-25, 25, -15, 15), 0, at), "#000");
  pen.fill(turn(box(-5, 5, -5, 120), -obs[2], axle), "#ca9865");
  pen.dot(axle, 5, "#8184cb");
}

function acrobot(pen, obs) {
  paper(pen, 500, 500);
  const scale = 500 / 4.4, first = Math.atan2(obs[1], obs[0]), second = Math.atan2(obs[3], obs[2]);
  pen.line([[0, 363], [500, 363]], "#000");
  let joint = [250, 250];
  for (const angle of [first - Math.PI / 2, first + second - Math.PI / 2]) {
    pen.fill(turn(box(0, scale, -0.1 * scale, 0.1 * scale), angle, joint), "#00cccc");
    pen.dot(joint, 0.1 * scale, "#cccc00");
    [joint] = turn([[scale, 0]], angle, joint);
  }
}

function pendulum(pen, obs) {
  paper(pen, 500, 500);
  const scale = 500 / 4.4, angle = Math.atan2(obs[1], obs[0]) + Math.PI / 2, axle = [250, 250];
  pen.fill(turn(box(0, scale, -0.1 * scale, 0.1 * scale), angle, axle), "#cc4d4d");
  for (const end of [axle, turn([[scale, 0]], angle, axle)[0]]) pen.dot(end, 0.1 * scale, "#cc4d4d");
  pen.dot(axle, 0.05 * scale, "#000");
}

function mountainCar(pen, obs) {
  paper(pen, 600, 400);
  const scale = 600 / 1.8, hill = (x) => [(x + 1.2) * scale, (Math.sin(3 * x) * 0.45 + 0.55) * scale];
  pen.line(Array.from({ length: 100 }, (_, i) => hill(-1.2 + (1.8 * i) / 99)), "#000");
  const [x, y] = hill(obs[0]), at = [x, y + 10], slope = Math.cos(3 * obs[0]);
  pen.fill(turn(box(-20, 20, 0, 20), slope, at), "#000");
  for (const wheel of turn([[10, 0], [-10, 0]], slope, at)) pen.dot(wheel, 8, "#808080");
  pen.flag(hill(0.5), "#000");
}

function lunarLander(pen, obs) {
  paper(pen, 600, 400, "#000000");
  const at = [300 + 300 * obs[0], 118 + 200 * obs[1]];
  pen.fill(box(0, 600, 0, 100), "#808080");
  pen.fill(box(240, 360, 0, 100), "#ffffff");
  pen.fill(turn([[-14, 17], [-17, 0], [-17, -10], [17, -10], [17, 0], [14, 17]], obs[4], at), "#8066e6");
  for (const [side, contact] of [[1, obs[6]], [-1, obs[7]]]) {
    const leg = turn(turn(box(-2, 2, -8, 8), 0, [20 * side, -18]), 0.4 * side, [0, 0]);
    pen.fill(turn(leg, obs[4], at), contact > 0.5 ? "#50dc50" : "#8066e6");
  }
  for (const x of [240, 360]) pen.flag([x, 100], "#ffffff");
}

const DRAWINGS = {
  CartPole: [4, 600, 400, cartPole], Acrobot: [6, 500, 500, acrobot], Pendulum: [3, 500, 500, pendulum],
  MountainCar: [2, 600, 400, mountainCar], MountainCarContinuous: [2, 600, 400, mountainCar],
  LunarLander: [8, 600, 400, lunarLander], LunarLanderContinuous: [8, 600, 400, lunarLander],
};

// Values in [-1, 1] as bars around the centre line.
function bars(pen, unit) {
  paper(pen, 400, 400);
  const lines = Math.ceil(unit.length / 64), perLine = Math.ceil(unit.length / lines), high = 400 / lines, wide = 400 / perLine;
  for (let i = 0; i < unit.length; i++) {
    const centre = 400 - (Math.floor(i / perLine) + 0.5) * high, left = (i % perLine) * wide;
    pen.fill(box(left, left + 0.9 * wide, centre, centre + (unit[i] * high) / 2), unit[i] > 0 ? "#5050c8" : "#cc4d4d");
    pen.line([[left, centre], [left + wide, centre]], "#808080", 1);
  }
}

function toUnit(obs, low, high) {
  return Array.from(obs, (x, i) => {
    const [a, b] = [low[i], high[i]];
    if (a === null || b === null || a === undefined || b <= a) return Math.tanh(x);
    return Math.min(1, Math.max(-1, (2 * (x - a)) / (b - a) - 1));
  });
}

// A canvas that shows the observations of one environment.
export class View {
  constructor(canvas, { env, shape, image, low, high }) {
    Object.assign(this, { canvas, shape, image, low, high });
    const name = env.split(":").pop().split("/").pop().replace(/-v\d+$/, "");
    const known = DRAWINGS[name];
    this.drawing = !image && known && shape.length === 1 && shape[0] === known[0] ? known : null;
    const [height, width] = image === "first" ? shape.slice(1) : image ? shape : this.drawing ? [this.drawing[2], this.drawing[1]] : [400, 400];
    this.size = [width, height];
    canvas.style.aspectRatio = `${width} / ${height}`;
    this.ctx = canvas.getContext("2d");
    if (!image) return;
    this.small = Object.assign(document.createElement("canvas"), { width, height }).getContext("2d");
    this.pixels = this.small.createImageData(width, height);
  }

  // `bytes`: a Uint8Array of pixels, or of float32 numbers.
  draw(bytes) {
    if (this.image) this.drawImage(bytes);
    else this.drawVector(new Float32Array(bytes.buffer.slice(bytes.byteOffset, bytes.byteOffset + bytes.byteLength)));
  }

  drawImage(bytes) {
    const [width, height] = this.size, plane = width * height, out = this.pixels.data;
    const channels = bytes.length / plane, first = this.image === "first";
    for (let i = 0; i < plane; i++) {
      for (let c = 0; c < 3; c++) {
        const k = channels === 1 ? 0 : c;
        out[4 * i + c] = first ? bytes[k * plane + i] : bytes[channels * i + k];
      }
      out[4 * i + 3] = 255;
    }
    this.small.putImageData(this.pixels, 0, 0);
    // Enlarged by a whole number, so that all pixels have one size; the browser shrinks the rest of the way.
    this.fit(Math.ceil(this.ratio()));
    this.ctx.imageSmoothingEnabled = false;
    this.ctx.drawImage(this.small.canvas, 0, 0, this.canvas.width, this.canvas.height);
  }

  // Pixels of the screen for a pixel of the drawing.
  ratio() { return Math.max(this.canvas.clientWidth, 1) * devicePixelRatio / this.size[0]; }

  fit(ratio) {
    const [w, h] = this.size.map((side) => Math.round(side * ratio));
    if (this.canvas.width !== w) [this.canvas.width, this.canvas.height] = [w, h];
  }

  drawVector(obs) {
    const ratio = this.ratio();
    this.fit(ratio);
    this.ctx.setTransform(ratio, 0, 0, ratio, 0, 0);
    const pen = new Pen(this.ctx, this.size[1]), finite = obs.map((x) => (Number.isFinite(x) ? x : 0));
    if (this.drawing) this.drawing[3](pen, finite);
    else bars(pen, toUnit(finite, this.low, this.high));
  }
}
