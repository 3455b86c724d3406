// Arithmetic that the models share.
export const sigmoid = (x) => 1 / (1 + Math.exp(-x));
export const clip = (x, low, high) => Math.min(high, Math.max(low, x));

// out = weight (out, in) @ x + bias; rows from..to of the weight.
export function linear({ data }, bias, x, from = 0, to = bias.data.length) {
  const width = x.length, out = new Float32Array(to - from);
  for (let row = from; row < to; row++) {
    let sum = bias.data[row];
    for (let i = 0, at = row * width; i < width; i++, at++) sum += data[at] * x[i];
    out[row - from] = sum;
  }
  return out;
}

export const join = (...parts) => {
  const out = new Float32Array(parts.reduce((sum, part) => sum + part.length, 0));
  let at = 0;
  for (const part of parts) { out.set(part, at); at += part.length; }
  return out;
};
