// Dreams in plain JavaScript: the models V-M-C and ensemble, the controllers, and the environment made of them.
import { clip, join, linear, sigmoid } from "./maths.js";
import { Noise, PCG64, uniform } from "./noise.js";
import { Objects } from "./objects.js";

let halves = null; // float16 to float32.
function half(bits) {
  if (!halves) {
    halves = new Float32Array(65536);
    for (let i = 0; i < 65536; i++) {
      const sign = i & 0x8000 ? -1 : 1, exponent = (i >> 10) & 31, fraction = i & 1023;
      if (exponent === 0) halves[i] = sign * fraction * 2 ** -24;
      else if (exponent === 31) halves[i] = fraction ? NaN : sign * Infinity;
      else halves[i] = sign * (1 + fraction / 1024) * 2 ** (exponent - 15);
    }
  }
  return halves[bits];
}

// The tensors of a safetensors file: {name: {shape, data}}, and its metadata.
export function readTensors(buffer) {
  const length = Number(new DataView(buffer).getBigUint64(0, true));
  const { __metadata__: about = {}, ...head } = JSON.parse(new TextDecoder().decode(new Uint8Array(buffer, 8, length)));
  const tensors = {};
  for (const [name, { dtype, shape, data_offsets: [from, to] }] of Object.entries(head)) {
    const bytes = buffer.slice(8 + length + from, 8 + length + to);
    if (dtype === "F16") tensors[name] = { shape, data: Float32Array.from(new Uint16Array(bytes), half) };
    else if (dtype === "F32") tensors[name] = { shape, data: new Float32Array(bytes) };
    else if (dtype === "U8" || dtype === "BOOL") tensors[name] = { shape, data: new Uint8Array(bytes) };
    else throw new Error(`${name} has the type ${dtype}; F16, F32, U8 and BOOL are supported`);
  }
  return { tensors, about };
}

// V-M-C: latent {z, h, c}; see wm_agents/models/vmc.py.
class VMC {
  constructor(tensors, cfg) {
    this.t = tensors;
    Object.assign(this, { z: cfg.z_dim, hidden: cfg.hidden, mixtures: cfg.mixtures, padding: cfg.vision === "paper" ? 0 : 1 });
    this.classes = cfg.rew_head === "classes";
    this.layers = [0, 1, 2, 3].map((i) => this.arranged(tensors[`vision.decoder.deconvs.${i}.weight`], tensors[`vision.decoder.deconvs.${i}.bias`]));
    this.still = tensors["vision.still"];
    const fc = tensors["vision.decoder.fc.bias"].data.length, channels = this.layers[0].ins;
    this.side = Math.round(Math.sqrt(fc / channels));
  }

  // (in, out, k, k) as one (in, out) matrix for each tap.
  arranged({ shape: [ins, outs, k], data }, bias) {
    const taps = Array.from({ length: k * k }, (_, tap) => {
      const matrix = new Float32Array(ins * outs);
      for (let i = 0; i < ins * outs; i++) matrix[i] = data[i * k * k + tap];
      return matrix;
    });
    return { ins, outs, k, taps, bias: bias.data };
  }

  noiseDim() { return 1 + this.z; }

  step({ z, h, c }, act, noise, temperature) {
    const { t, hidden } = this, x = join(act, z), gates = linear(t["memory.rnn.weight_ih_l0"], t["memory.rnn.bias_ih_l0"], x);
    const more = linear(t["memory.rnn.weight_hh_l0"], t["memory.rnn.bias_hh_l0"], h);
    const newH = new Float32Array(hidden), newC = new Float32Array(hidden);
    for (let j = 0; j < hidden; j++) {
      const gate = (part) => gates[part * hidden + j] + more[part * hidden + j];
      newC[j] = sigmoid(gate(1)) * c[j] + sigmoid(gate(0)) * Math.tanh(gate(2));
      newH[j] = sigmoid(gate(3)) * Math.tanh(newC[j]);
    }
    const { next, tail } = this.draw(newH, noise, temperature);
    const term = tail[tail.length - 1], rew = this.classes ? this.expected(tail) : tail[0] * t.rew_scale.data[0];
    const cont = sigmoid(-term);
    return { latent: { z: next, h: newH, c: newC }, rew, cont, end: null };
  }

  draw(h, noise, temperature) {
    const { t, z, mixtures: k } = this, weight = t["memory.gmm_linear.weight"], bias = t["memory.gmm_linear.bias"];
    const all = linear(weight, bias, h, 2 * k * z, bias.data.length), logits = all.subarray(0, k), tail = all.subarray(k);
    const top = Math.max(...logits), shares = Array.from(logits, (x) => Math.exp((x - top) / temperature));
    const chance = uniform(noise[0]) * shares.reduce((a, b) => a + b);
    let pick = 0, edge = shares[0];
    while (edge < chance && pick < k - 1) edge += shares[++pick];
    const mean = linear(weight, bias, h, pick * z, (pick + 1) * z);
    const spread = linear(weight, bias, h, (k + pick) * z, (k + pick + 1) * z);
    const next = mean.map((mu, i) => mu + Math.exp(clip(spread[i], -7, 5)) * Math.sqrt(temperature) * noise[1 + i]);
    return { next, tail };
  }

  expected(tail) {
    const values = this.t["classes.values"].data, weights = this.t["classes.weights"].data;
    const logits = Array.from(values, (_, i) => (weights[i] > 0 ? tail[i] - Math.log(weights[i]) : -Infinity)), top = Math.max(...logits);
    const shares = logits.map((x) => Math.exp(x - top)), sum = shares.reduce((a, b) => a + b);
    return shares.reduce((total, share, i) => total + (share / sum) * values[i], 0);
  }

  feat({ z, h }) { return join(z, h); }

  // An image (S, S, C) as Uint8Array, by transposed convolutions of stride 2, channels last.
  decode({ z }) {
    const { layers, side } = this, first = layers[0].ins;
    const flat = linear(this.t["vision.decoder.fc.weight"], this.t["vision.decoder.fc.bias"], z);
    let x = new Float32Array(flat.length), size = side;
    for (let c = 0; c < first; c++) for (let i = 0; i < side * side; i++) x[i * first + c] = Math.max(0, flat[c * side * side + i]);
    layers.forEach((layer, i) => { [x, size] = this.transposed(x, size, layer, i < layers.length - 1); });
    return this.toLevels(x, size);
  }

  transposed(x, size, { ins, outs, k, taps, bias }, relu) {
    const pad = this.padding, next = 2 * (size - 1) + k - 2 * pad, out = new Float32Array(next * next * outs), sum = new Float32Array(outs);
    for (let oy = 0; oy < next; oy++) {
      for (let ox = 0; ox < next; ox++) {
        sum.set(bias);
        for (let ky = (oy + pad) & 1; ky < k; ky += 2) {
          const iy = (oy + pad - ky) / 2;
          if (iy < 0 || iy >= size) continue;
          for (let kx = (ox + pad) & 1; kx < k; kx += 2) {
            const ix = (ox + pad - kx) / 2;
            if (ix < 0 || ix >= size) continue;
            const matrix = taps[ky * k + kx], from = (iy * size + ix) * ins;
            for (let i = 0; i < ins; i++) {
              const value = x[from + i];
              if (value === 0) continue; // Half of them are, after a ReLU.
              for (let o = 0, at = i * outs; o < outs; o++, at++) sum[o] += value * matrix[at];
            }
          }
        }
        const to = (oy * next + ox) * outs;
        for (let o = 0; o < outs; o++) out[to + o] = relu && sum[o] < 0 ? 0 : sum[o];
      }
    }
    return [out, next];
  }

  toLevels(x, size) {
    const channels = x.length / (size * size), out = new Uint8ClampedArray(x.length);
    for (let i = 0; i < x.length; i++) {
      const level = this.still ? this.still.data[(i % channels) * size * size + Math.floor(i / channels)] + x[i] : sigmoid(x[i]);
      out[i] = 255 * level; // Uint8ClampedArray rounds to the nearest even, as PyTorch does.
    }
    return new Uint8Array(out.buffer);
  }
}

// A probabilistic ensemble: latent {obs}; see wm_agents/models/ensemble.py.
class Ensemble {
  constructor(tensors, cfg, space) {
    this.t = tensors;
    Object.assign(this, { members: cfg.members, layers: cfg.layers + 1, odds: Math.log(cfg.term_weight), space });
    this.dim = tensors["scale.obs_mean"].data.length;
  }

  noiseDim() { return this.dim + 2; }

  through(net, member, x) {
    for (let i = 0; i < this.layers; i++) {
      const { shape: [, ins, outs], data } = this.t[`${net}.weights.${i}`], bias = this.t[`${net}.biases.${i}`].data;
      if (i) x = x.map((value) => value * sigmoid(value));
      const out = bias.slice(member * outs, (member + 1) * outs), start = member * ins * outs;
      for (let row = 0; row < ins; row++) for (let o = 0, at = start + row * outs; o < outs; o++, at++) out[o] += x[row] * data[at];
      x = out;
    }
    return x;
  }

  step({ obs }, act, noise, temperature) {
    const { dim, t } = this, unit = (name) => t[`scale.${name}`].data;
    const member = Math.min(Math.floor(uniform(noise[dim]) * this.members), this.members - 1);
    const seen = obs.map((x, i) => (x - unit("obs_mean")[i]) / unit("obs_std")[i]), x = join(seen, act);
    const ahead = this.through("change", member, x), [logit, endRew] = this.through("end", member, x);
    const chance = sigmoid(logit - this.odds), end = chance > uniform(noise[dim + 1]);
    const next = obs.map((value, i) => this.plausible(i,
      value + (ahead[i] + Math.exp(-5 + 6 * sigmoid(ahead[dim + i])) * Math.sqrt(temperature) * noise[i]) * unit("change_std")[i]));
    const moved = next.map((value, i) => (value - obs[i]) / unit("change_std")[i]);
    const rew = end ? endRew * unit("end_rew")[0] : this.through("reward", member, join(x, moved))[0] * unit("rew")[0];
    return { latent: { obs: next }, rew, cont: 1 - chance, end };
  }

  plausible(i, value) {
    const low = this.t["scale.seen_low"].data[i], high = this.t["scale.seen_high"].data[i];
    if (this.t["scale.two_valued"].data[i] > 0) return value > (low + high) / 2 ? high : low;
    return clip(value, low - (high - low), high + (high - low));
  }

  feat({ obs }) { return obs.map((x, i) => (x - this.t["scale.feat_mean"].data[i]) / this.t["scale.feat_std"].data[i]); }

  decode({ obs }) {
    const { low, high } = this.space, shown = obs.map((x, i) => clip(x, low[i] ?? -Infinity, high[i] ?? Infinity));
    return new Uint8Array(shown.buffer);
  }
}

const MODELS = { vmc: VMC, ensemble: Ensemble, objects: Objects };

// Actions (numbers in the environment's own units) as the model takes them: see wm_envs/action.py.
export function encode(controls, act) {
  if (controls.kind === "discrete") return Float32Array.from(controls.names, (_, i) => (i === act[0] - controls.start ? 1 : 0));
  return Float32Array.from(controls.dims, ({ low, high }, i) => clip((2 * (act[i] - low)) / (high - low) - 1, -1, 1));
}

const argmax = (x) => x.reduce((best, value, i) => (value > x[best] ? i : best), 0);
const decodeUnit = (controls, unit) => controls.dims.map(({ low, high }, i) => low + 0.5 * (clip(unit[i], -1, 1) + 1) * (high - low));

// Controllers: feat to an action, as policies/linear.py and policies/mlp.py.
function linearPolicy({ tensors, about }, controls) {
  const { shape: [rows, columns], data } = tensors.weights, squash = about.squash ? about.squash.split(",") : [];
  return (feat) => {
    const outs = Array.from({ length: rows }, (_, row) => {
      let sum = data[(row + 1) * columns - 1];
      for (let i = 0; i < columns - 1; i++) sum += data[row * columns + i] * feat[i];
      return sum;
    });
    if (controls.kind === "discrete") return [argmax(outs) + controls.start];
    return decodeUnit(controls, outs.map((x, i) => (squash[i] === "clip" ? 2 * Math.max(Math.tanh(x), 0) - 1 : Math.tanh(x))));
  };
}

const ACTIVATIONS = { tanh: Math.tanh, relu: (x) => Math.max(0, x), silu: (x) => x * sigmoid(x) };

function mlpPolicy({ tensors, about }, controls) {
  const count = Object.keys(tensors).length / 2, activate = ACTIVATIONS[about.activation];
  return (feat) => {
    let x = feat;
    for (let i = 0; i < count; i++) {
      x = linear(tensors[`${i}.weight`], tensors[`${i}.bias`], x);
      if (i < count - 1) x = x.map(activate);
    }
    if (about.squash === "argmax") return [argmax(Array.from(x)) + controls.start];
    if (about.squash === "clip") return controls.dims.map(({ low, high }, i) => clip(x[i], low, high));
    return decodeUnit(controls, Array.from(x, about.squash === "tanh" ? Math.tanh : (value) => value));
  };
}

const POLICIES = { linear: linearPolicy, mlp: mlpPolicy };

// The dream as an environment: `reset(seed)` and `step(act)` give what DreamEnv gives in Python.
export class Dream {
  constructor(facts, model, starts, policies) {
    this.facts = facts;
    const { tensors } = readTensors(model);
    this.model = new MODELS[facts.family](tensors, facts.model, facts);
    this.banks = {};
    for (const [name, tensor] of Object.entries(readTensors(starts).tensors)) {
      const [bank, key] = name.split("/");
      (this.banks[bank] ??= {})[key] = tensor;
    }
    this.policies = Object.fromEntries(Object.entries(policies).map(([kind, buffer]) => [kind, POLICIES[kind](readTensors(buffer), facts.controls)]));
    this.temperature = facts.temperature;
    this.horizon = facts.horizon;
  }

  // Loads the files beside `base`.
  static async load(base, get) {
    const facts = JSON.parse(new TextDecoder().decode(await get(new URL("dream.json", base))));
    const policies = {};
    for (const kind of facts.policies) policies[kind] = await get(new URL(`policy_${kind}.safetensors`, base));
    return new Dream(facts, await get(new URL("model.safetensors", base)), await get(new URL("starts.safetensors", base)), policies);
  }

  reset(seed, start = "begin") {
    const rng = new PCG64(seed), bank = this.banks[start], rows = Object.values(bank)[0].shape[0], row = rng.below(rows);
    this.latent = {};
    for (const [key, { shape, data }] of Object.entries(bank)) {
      const width = shape.slice(1).reduce((a, b) => a * b, 1);
      this.latent[key] = data.slice(row * width, (row + 1) * width);
    }
    this.noise = new Noise(rng);
    this.age = 0;
    return this.model.decode(this.latent);
  }

  step(act) {
    const noise = this.noise.normal(this.model.noiseDim());
    const out = this.model.step(this.latent, encode(this.facts.controls, act), noise, this.temperature);
    this.latent = out.latent;
    this.age += 1;
    const term = out.end ?? out.cont < this.facts.cut_off;
    return { rew: out.rew, cont: out.cont, term, trunc: this.horizon !== null && this.age >= this.horizon };
  }

  feat() { return this.model.feat(this.latent); }
  decode() { return this.model.decode(this.latent); }
}
