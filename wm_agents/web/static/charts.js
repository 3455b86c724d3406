// Small charts on canvases: curves over steps, and a strip of features.

export const color = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();

function sized(canvas) {
  const ratio = devicePixelRatio || 1, w = canvas.clientWidth, h = canvas.clientHeight;
  if (canvas.width !== Math.round(w * ratio) || canvas.height !== Math.round(h * ratio)) {
    canvas.width = Math.round(w * ratio); canvas.height = Math.round(h * ratio);
  }
  const ctx = canvas.getContext("2d");
  ctx.setTransform(ratio, 0, 0, ratio, 0, 0);
  ctx.clearRect(0, 0, w, h);
  return [ctx, w, h];
}

// A number in few characters, with `digits` of them at least where it is between 0.001 and 10,000.
export function short(x, digits = 3) {
  const size = Math.abs(x);
  if (x === 0) return "0";
  if (size >= 1e6) return `${+(x / 1e6).toPrecision(3)}M`;
  if (size >= 1e4) return `${+(x / 1e3).toPrecision(3)}k`;
  if (size < 1e-3) return x.toExponential(0);
  return `${+x.toPrecision(digits)}`;
}

// Numbers with as many digits as tell them apart.
function apart(numbers) {
  let digits = 3;
  while (digits < 8 && new Set(numbers.map((x) => short(x, digits))).size < numbers.length) digits += 1;
  return (x) => short(x, digits);
}

// Round values from about y0 to about y1, at most `most` of them.
function ticks(y0, y1, most) {
  const rough = (y1 - y0) / Math.max(1, most - 1), unit = 10 ** Math.floor(Math.log10(rough));
  const step = unit * [1, 2, 2.5, 5, 10].find((factor) => factor * unit >= rough * 0.999);
  const first = Math.floor(y0 / step + 1e-9), last = Math.ceil(y1 / step - 1e-9);
  return Array.from({ length: last - first + 1 }, (_, i) => (first + i) * step);
}

const finite = ([, y]) => y !== null && Number.isFinite(y);
const least = (xs) => xs.reduce((a, b) => Math.min(a, b)), most = (xs) => xs.reduce((a, b) => Math.max(a, b));

// The area that curves and bands need, with room for labels.
function frame(lines, levels, { low, high, span, grow = 1e-9 }, w, h) {
  const points = lines.flatMap((line) => [...line.values, ...(line.band ?? []).flatMap(([x, a, b]) => [[x, a], [x, b]])]).filter(finite);
  if (!points.length) return null;
  const xs = points.map(([x]) => x), ys = [...points.map(([, y]) => y), ...levels.map(({ y }) => y)];
  const x0 = span ? span[0] : least(xs), x1 = Math.max(span ? span[1] : most(xs), x0 + 1);
  let y0 = low ?? least(ys), y1 = high ?? most(ys);
  if (y1 - y0 < grow) [y0, y1] = [(y0 + y1 - Math.max(grow, Math.abs(y0) / 10 || 1)) / 2, (y0 + y1 + Math.max(grow, Math.abs(y0) / 10 || 1)) / 2];
  const marks = low !== undefined && high !== undefined ? [low, high] : ticks(y0, y1, h > 100 ? 4 : 2);
  [y0, y1] = [Math.min(y0, marks[0]), Math.max(y1, marks.at(-1))];
  const digits = Math.max(...marks.map((y) => apart(marks)(y).length)), pad = { left: Math.max(46, 12 + 7 * digits), right: 10, top: 10, bottom: h > 100 ? 20 : 8 };
  const X = (x) => pad.left + ((x - x0) / (x1 - x0)) * (w - pad.left - pad.right);
  const Y = (y) => h - pad.bottom - ((y - y0) / (y1 - y0)) * (h - pad.top - pad.bottom);
  return { X, Y, x0, x1, pad, marks };
}

// Curves {values, color, dash?, width?, alpha?, fill?, band?} of [x, y] points over one x axis; a band has [x, low, high].
// marks: [x, color, label] as vertical lines. levels: {y, color, label} as horizontal lines. unit: the name of the x axis.
export function curves(canvas, lines, options = {}) {
  const { marks = [], levels = [], unit = "" } = options, [ctx, w, h] = sized(canvas);
  const area = frame(lines, levels, options, w, h);
  canvas.redraw = () => curves(canvas, lines, options);
  if (!area) return;
  const { X, Y, x0, x1, pad } = area, label = apart(area.marks);
  ctx.font = "12px system-ui, sans-serif";
  ctx.textBaseline = "middle";
  const text = (words, x, y, tone, align) => { ctx.fillStyle = tone; ctx.textAlign = align; ctx.fillText(words, x, y); };
  const above = (...given) => { // Readable on top of curves.
    Object.assign(ctx, { strokeStyle: color("card"), lineWidth: 4, lineJoin: "round", textAlign: given.at(-1) });
    ctx.strokeText(...given.slice(0, 3));
    text(...given);
  };
  const stroke = (points, tone, width, dash = []) => {
    ctx.strokeStyle = tone; ctx.lineWidth = width; ctx.setLineDash(dash);
    ctx.beginPath(); for (const [x, y] of points) ctx.lineTo(x, y); ctx.stroke(); ctx.setLineDash([]);
  };
  for (const y of area.marks) {
    stroke([[pad.left, Y(y)], [w - pad.right, Y(y)]], color("line"), 1);
    text(label(y), pad.left - 8, Y(y), color("quiet"), "right");
  }
  if (h > 100) {
    text(short(x0), pad.left, h - 7, color("quiet"), "left");
    text(`${unit} ${short(x1)}`.trim(), w - pad.right, h - 7, color("quiet"), "right");
  }
  for (const { y, color: tone } of levels) stroke([[pad.left, Y(y)], [w - pad.right, Y(y)]], tone, 1.5, [6, 4]);
  const inside = marks.filter(([x]) => x >= x0 && x <= x1);
  for (const [x, tone, words] of inside) stroke([[X(x), pad.top], [X(x), h - pad.bottom]], tone, words ? 2 : 1, words ? [] : [3, 4]);
  for (const line of lines) curve(ctx, line, area, h);
  for (const { y, color: tone, label: words } of levels) if (words) above(words, pad.left + 4, Y(y) + (Y(y) < pad.top + 14 ? 9 : -8), tone, "left");
  for (const [x, tone, words] of inside) {
    const right = X(x) > w - 150;
    if (words) above(words, X(x) + (right ? -6 : 6), pad.top + 6, tone, right ? "right" : "left");
  }
  hover(canvas, ctx, lines, area, { w, h, unit });
}

function curve(ctx, { values, color: tone, dash, width = 2, alpha = 1, fill = false, band }, { X, Y, pad }, h) {
  const points = values.filter(finite);
  if (band?.length) {
    ctx.globalAlpha = 0.16 * alpha; ctx.fillStyle = tone; ctx.beginPath();
    const wide = band.length > 1 ? 0 : 4; // The interval of a single value is a bar.
    for (const [x, , y] of band) ctx.lineTo(X(x) - wide, Y(y));
    for (const [x, y] of [...band].reverse()) ctx.lineTo(X(x) - wide, Y(y));
    if (wide) for (const y of band[0].slice(1)) ctx.lineTo(X(band[0][0]) + wide, Y(y));
    ctx.fill();
  }
  if (fill && points.length > 1) {
    const shade = ctx.createLinearGradient(0, pad.top, 0, h - pad.bottom);
    shade.addColorStop(0, tone); shade.addColorStop(1, "transparent");
    ctx.globalAlpha = 0.16 * alpha; ctx.fillStyle = shade; ctx.beginPath();
    ctx.moveTo(X(points[0][0]), h - pad.bottom);
    for (const [x, y] of points) ctx.lineTo(X(x), Y(y));
    ctx.lineTo(X(points.at(-1)[0]), h - pad.bottom); ctx.fill();
  }
  ctx.globalAlpha = alpha;
  ctx.strokeStyle = tone; ctx.lineWidth = width; ctx.lineJoin = "round"; ctx.setLineDash(dash || []);
  ctx.beginPath();
  let drawing = false;
  for (const point of values) {
    if (!finite(point)) { drawing = false; continue; }
    if (drawing) ctx.lineTo(X(point[0]), Y(point[1])); else ctx.moveTo(X(point[0]), Y(point[1]));
    drawing = true;
  }
  ctx.stroke(); ctx.setLineDash([]);
  if (points.length && points.length <= 12) for (const [x, y] of points) { ctx.fillStyle = tone; ctx.beginPath(); ctx.arc(X(x), Y(y), 3, 0, 7); ctx.fill(); }
  ctx.globalAlpha = 1;
}

// The values under the pointer, once the chart has been touched.
function hover(canvas, ctx, lines, { X, Y, x0, x1, pad }, { w, h, unit }) {
  if (!canvas.follows) {
    canvas.follows = true;
    canvas.addEventListener("pointermove", (event) => { canvas.pointer = event.offsetX; canvas.redraw(); });
    canvas.addEventListener("pointerleave", () => { canvas.pointer = null; canvas.redraw(); });
  }
  if (canvas.pointer === null || canvas.pointer === undefined) return;
  const x = x0 + ((canvas.pointer - pad.left) / (w - pad.left - pad.right)) * (x1 - x0);
  const near = (values) => values.filter(finite).reduce((best, point) => (best && Math.abs(best[0] - x) <= Math.abs(point[0] - x) ? best : point), null);
  const found = lines.filter(({ alpha = 1 }) => alpha === 1).map((line) => [near(line.values), line.color]).filter(([point]) => point);
  if (!found.length) return;
  const at = X(found[0][0][0]), words = [`${unit} ${short(found[0][0][0])}`.trim(), ...found.map(([[, y]]) => short(y, 4))];
  ctx.strokeStyle = color("quiet"); ctx.lineWidth = 1; ctx.beginPath(); ctx.moveTo(at, pad.top); ctx.lineTo(at, h - pad.bottom); ctx.stroke();
  for (const [[px, py], tone] of found) { ctx.fillStyle = tone; ctx.beginPath(); ctx.arc(X(px), Y(py), 3.5, 0, 7); ctx.fill(); }
  const width = words.reduce((sum, word) => sum + ctx.measureText(word).width + 10, 0) + 4, left = Math.max(pad.left, Math.min(w - pad.right - width, at - width / 2));
  ctx.fillStyle = color("card"); ctx.globalAlpha = 0.92; ctx.fillRect(left, pad.top - 9, width, 18); ctx.globalAlpha = 1;
  let from = left + 6;
  words.forEach((word, i) => {
    ctx.fillStyle = i ? found[i - 1][1] : color("quiet"); ctx.textAlign = "left"; ctx.fillText(word, from, pad.top);
    from += ctx.measureText(word).width + 10;
  });
}

const mix = (a, b, t) => a.map((x, i) => Math.round(x + (b[i] - x) * t));
const rgb = (hex) => [1, 3, 5].map((i) => parseInt(hex.slice(i, i + 2), 16));

// Features (int8, 32 a unit) as a strip: the dream's colour below 0, the mark's above.
export function strip(canvas, values) {
  const rows = values.length > 96 ? Math.ceil(values.length / 96) : 1, cols = Math.ceil(values.length / rows);
  canvas.width = cols; canvas.height = rows;
  const ctx = canvas.getContext("2d"), image = ctx.createImageData(cols, rows);
  const zero = rgb(color("bg")), minus = rgb(color("dream")), plus = rgb(color("mark"));
  for (let i = 0; i < values.length; i++) {
    const t = Math.min(1, Math.abs(values[i]) / 64), tone = mix(zero, values[i] < 0 ? minus : plus, Math.sqrt(t));
    image.data.set([...tone, 255], 4 * i);
  }
  ctx.putImageData(image, 0, 0);
}
