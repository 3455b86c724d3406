// A model of objects: latent {place, here, acts, age, score}; see wm_agents/models/objects.py.
import { join, linear, sigmoid } from "./maths.js";
import { uniform } from "./noise.js";

const LONGEST = 32;
const silu = (x) => x.map((value) => value * sigmoid(value));
const sum = (x, y) => x.map((value, i) => value + y[i]);

// Whole pixels as sines and cosines; see `Waves` in objects.py.
const waves = (pixels, frequency) => pixels.flatMap((x) => [...frequency.map((f) => Math.sin(x * f)), ...frequency.map((f) => Math.cos(x * f))]);

// Distances at three scales, which triple the length.
const scaled = (pixels) => [...pixels.map((x) => x / 80), ...pixels.map((x) => Math.tanh(x / 16)), ...pixels.map((x) => Math.tanh(x / 4))];

// Samples classes with uniform noise, one number per prediction; at temperature 0 it takes the most likely ones.
class Dice {
  constructor(noise, temperature) {
    this.temperature = temperature;
    this.chance = Array.from(noise, uniform);
  }

  pick(logits, guess) {
    const top = logits.reduce((best, value, i) => (value > logits[best] ? i : best), 0);
    if (this.temperature === 0) return top;
    const shares = Array.from(logits, (x) => Math.exp((x - logits[top]) / this.temperature));
    const target = this.chance[guess] * shares.reduce((a, b) => a + b);
    let pick = 0, edge = shares[0];
    while (edge < target && pick < shares.length - 1) edge += shares[++pick];
    return pick;
  }

  flip(logit, guess) {
    if (this.temperature === 0) return logit > 0;
    return this.chance[guess] < sigmoid(logit / this.temperature);
  }
}

export class Objects {
  constructor(tensors, cfg) {
    this.t = tensors;
    Object.assign(this, { slots: cfg.slots, history: cfg.history, reach: cfg.reach, head: cfg.head });
    this.frame = tensors["eye.background"].shape;
    this.size = tensors["eye.size"].data;
    const periods = Math.ceil(Math.log2(2 * Math.max(this.frame[0], this.frame[1])));
    this.frequency = Array.from({ length: periods }, (_, i) => Math.PI / 2 ** i);
    this.used = tensors["eye.used"].data.reduce((a, b) => a + b);
  }

  noiseDim() { return 3 * this.slots + 2; }

  layer(name, x) { return linear(this.t[`heads.${name}.weight`], this.t[`heads.${name}.bias`], x); }

  // A layer without a bias.
  given(name, x) { return linear(this.t[`heads.${name}.weight`], { data: new Float32Array(this.head) }, Float32Array.from(x)); }

  // Place (row, column) and presence of object k in the frame `back` frames before the last.
  at({ place, here }, k, back = 0) {
    const i = (this.history - 1 - back) * this.slots + k;
    return { row: place[2 * i], column: place[2 * i + 1], here: here[i] };
  }

  // The waves of a difference of two objects; zeros if one of them is invisible.
  between(to, from) {
    const both = to.here * from.here;
    return waves([to.row - from.row, to.column - from.column], this.frequency).map((x) => x * both);
  }

  feat(latent) {
    const { slots, history } = this, [height, width] = this.frame, objects = [...Array(slots).keys()];
    const now = objects.map((k) => this.at(latent, k));
    const centre = now.map(({ row, column }, k) => [row + this.size[2 * k] / 2, column + this.size[2 * k + 1] / 2]);
    const each = (values) => objects.flatMap((k) => values(k).map((x) => x * now[k].here));
    const apart = objects.flatMap((later) => objects.slice(0, later).flatMap((earlier) => {
      const gap = [0, 1].map((axis) => centre[later][axis] - centre[earlier][axis]);
      return scaled(gap).map((x) => x * now[later].here * now[earlier].here);
    }));
    const moved = [];
    for (let back = history - 2; back >= 0; back--) {
      for (const k of objects) {
        const to = this.at(latent, k, back), from = this.at(latent, k, back + 1), both = to.here * from.here;
        moved.push((to.row - from.row) * both, (to.column - from.column) * both);
      }
    }
    const room = (k) => [height - this.size[2 * k] - now[k].row, width - this.size[2 * k + 1] - now[k].column];
    return join(
      latent.here,
      each((k) => [(2 * centre[k][0]) / height - 1, (2 * centre[k][1]) / width - 1]),
      each((k) => [Math.tanh(now[k].row / 6), Math.tanh(now[k].column / 6)]),
      each((k) => room(k).map((x) => Math.tanh(x / 6))),
      moved.map((x) => x / 8),
      moved.map((x) => Math.tanh(x / 2)),
      apart,
      latent.age.map((x) => x / LONGEST),
      latent.age.map((x) => Math.tanh(x / 4)),
      latent.acts,
    );
  }

  // The inputs of the dynamics.
  inputs(latent) {
    const { slots, history } = this, objects = [...Array(slots).keys()], corner = { row: 0, column: 0, here: 1 };
    const now = objects.map((k) => this.at(latent, k)), moved = [];
    for (let back = history - 2; back >= 0; back--) {
      moved.push(...objects.flatMap((k) => this.between(this.at(latent, k, back), this.at(latent, k, back + 1))));
    }
    return join(
      latent.here,
      now.flatMap((object) => this.between(object, corner)),
      moved,
      objects.flatMap((later) => now.slice(0, later).flatMap((earlier) => this.between(now[later], earlier))),
      latent.age.map((x) => x / LONGEST),
      latent.age.map((x) => Math.tanh(x / 4)),
      latent.acts,
    );
  }

  // Inputs of a head: the objects `others` relative to the place `origin`.
  offsets(others, origin) {
    return others.flatMap((other) => [...this.between(other, { ...origin, here: 1 }), other.here]);
  }

  step(latent, act, noise, temperature) {
    const { slots, reach } = this, dice = new Dice(noise, temperature);
    const body = silu(this.layer("body.3", silu(this.layer("body.0", join(this.inputs(latent), act)))));
    const all = this.layer("shares", body), shares = (i) => all.subarray(i * this.head, (i + 1) * this.head);
    const was = Array.from({ length: slots }, (_, k) => this.at(latent, k)), drawn = was.map((object) => ({ ...object, here: 0 }));
    for (let k = 0; k < this.used; k++) {
      const others = this.offsets(drawn.slice(0, k), was[k]);
      const move = (axis, x, guess) => {
        const appears = drawn[k].here > was[k].here, head = `${appears ? "new" : "move"}_${axis}.${k}`;
        return dice.pick(this.layer(head, x), guess) - reach - (appears ? was[k][axis] : 0);
      };
      const rows = silu(k ? sum(shares(k), this.given(`row_given.${k - 1}`, others)) : shares(k));
      drawn[k].here = Number(dice.flip(this.layer(`here.${k}`, rows)[0], 3 * k));
      const down = move("row", rows, 3 * k + 1);
      const columns = silu(sum(shares(slots + k), this.given(`column_given.${k}`, [...others, ...waves([down], this.frequency)])));
      const right = move("column", columns, 3 * k + 2);
      if (drawn[k].here) Object.assign(drawn[k], { row: was[k].row + down, column: was[k].column + right });
    }
    return this.outcome(latent, act, drawn, was, shares(2 * slots), dice);
  }

  outcome(latent, act, drawn, was, share, dice) {
    const { slots, t } = this, weights = t["rewards.weights"].data;
    const inputs = drawn.flatMap((object, k) => this.offsets([object], was[k]));
    const logits = this.layer("outcome", silu(sum(share, this.given("end_given", inputs))));
    const odds = Array.from(weights, (weight, i) => (weight > 0 ? logits[i] - Math.log(weight) : -Infinity));
    const rew = t["rewards.values"].data[dice.pick(odds, 3 * slots)], logit = logits[logits.length - 1];
    const score = [latent.score[0] + (rew < 0), latent.score[1] + (rew > 0)];
    const over = score.some((count, side) => count >= t.limit.data[side] && (side ? rew > 0 : rew < 0));
    const end = dice.flip(logit, 3 * slots + 1) || over;
    return { latent: this.advance(latent, act, drawn, score), rew, cont: over ? 0 : 1 - sigmoid(logit), end };
  }

  advance({ place, here, acts, age }, act, drawn, score) {
    const { slots } = this, same = drawn.map((object, k) => object.here === here[here.length - slots + k]);
    return {
      place: join(place.subarray(2 * slots), drawn.flatMap(({ row, column }) => [row, column])),
      here: join(here.subarray(slots), drawn.map((object) => object.here)),
      acts: join(acts.subarray(act.length), act),
      age: age.map((x, k) => (same[k] ? Math.min(x + 1, LONGEST) : 0)),
      score: Float32Array.from(score),
    };
  }

  // An image (H, W, C) as Uint8Array: sprites on the background, larger ones first.
  decode(latent) {
    const [height, width, channels] = this.frame, frame = this.t["eye.background"].data.slice();
    for (let k = 0; k < this.slots; k++) {
      const { row, column, here } = this.at(latent, k), sprite = this.t["eye.sprite"].data.subarray(k * height * width, (k + 1) * height * width);
      if (here <= 0.5) continue;
      for (let y = Math.max(0, row); y < height; y++) {
        for (let x = Math.max(0, column); x < width; x++) {
          if (!sprite[(y - row) * width + x - column]) continue;
          for (let c = 0; c < channels; c++) frame[(y * width + x) * channels + c] = this.t["eye.colour"].data[k * channels + c];
        }
      }
    }
    return frame;
  }
}
