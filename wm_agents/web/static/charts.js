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

const short = (x) => (x === 0 ? "0" : Math.abs(x) >= 100 ? x.toFixed(0) : Math.abs(x) >= 1 ? x.toFixed(1) : Math.abs(x) >= 0.01 ? x.toFixed(2) : x.toExponential(0));

// Curves {values, color, dash?} of [x, y] points over one x axis. marks: [x, color, label].
export function curves(canvas, lines, { low, high, least = 1e-9, marks = [], span, label = short } = {}) {
  const [ctx, w, h] = sized(canvas), pad = { left: 40, right: 8, top: 8, bottom: 6 };
  const points = lines.flatMap((line) => line.values).filter(([, y]) => y !== null && Number.isFinite(y));
  if (!points.length) return;
  const xs = points.map(([x]) => x), ys = points.map(([, y]) => y);
  const x0 = span ? span[0] : xs.reduce((a, b) => Math.min(a, b)), x1 = Math.max(span ? span[1] : xs.reduce((a, b) => Math.max(a, b)), x0 + 1);
  let y0 = low ?? ys.reduce((a, b) => Math.min(a, b)), y1 = high ?? ys.reduce((a, b) => Math.max(a, b));
  if (y1 - y0 < least) [y0, y1] = [(y0 + y1 - Math.max(least, 1)) / 2, (y0 + y1 + Math.max(least, 1)) / 2];
  const X = (x) => pad.left + ((x - x0) / (x1 - x0)) * (w - pad.left - pad.right);
  const Y = (y) => h - pad.bottom - ((y - y0) / (y1 - y0)) * (h - pad.top - pad.bottom);
  ctx.font = "11px system-ui, sans-serif";
  ctx.textBaseline = "middle";
  for (const y of [y0, y1]) {
    ctx.strokeStyle = color("line"); ctx.lineWidth = 1;
    ctx.beginPath(); ctx.moveTo(pad.left, Y(y)); ctx.lineTo(w - pad.right, Y(y)); ctx.stroke();
    ctx.fillStyle = color("quiet"); ctx.textAlign = "right"; ctx.fillText(label(y), pad.left - 6, Y(y));
  }
  for (const [x, tone, text] of marks) {
    if (x < x0 || x > x1) continue;
    ctx.strokeStyle = tone; ctx.lineWidth = text ? 2 : 1; ctx.setLineDash(text ? [] : [3, 4]);
    ctx.beginPath(); ctx.moveTo(X(x), pad.top); ctx.lineTo(X(x), h - pad.bottom); ctx.stroke(); ctx.setLineDash([]);
    if (text) {
      const right = X(x) > w - 150;
      ctx.fillStyle = tone; ctx.textAlign = right ? "right" : "left"; ctx.fillText(text, X(x) + (right ? -6 : 6), pad.top + 6);
    }
  }
  for (const { values, color: tone, dash, width = 2 } of lines) {
    ctx.strokeStyle = tone; ctx.lineWidth = width; ctx.lineJoin = "round"; ctx.setLineDash(dash || []);
    ctx.beginPath();
    let drawing = false;
    for (const [x, y] of values) {
      if (y === null || !Number.isFinite(y)) { drawing = false; continue; }
      if (drawing) ctx.lineTo(X(x), Y(y)); else ctx.moveTo(X(x), Y(y));
      drawing = true;
    }
    ctx.stroke(); ctx.setLineDash([]);
    if (values.length === 1 && drawing) { ctx.fillStyle = tone; ctx.beginPath(); ctx.arc(X(values[0][0]), Y(values[0][1]), 3, 0, 7); ctx.fill(); }
  }
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
