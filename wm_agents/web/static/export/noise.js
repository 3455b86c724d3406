// The random numbers of a dream as Python draws them: NumPy's PCG64 for starts, PyTorch's Mersenne Twister for noise.

const M32 = 0xffffffffn, M64 = (1n << 64n) - 1n, M128 = (1n << 128n) - 1n;
const mul32 = (a, b) => Math.imul(a, b) >>> 0;

// NumPy's SeedSequence of one number below 2 ** 32: `count` words of 32 bits.
function seedWords(seed, count) {
  let mix = 0x43b0d7e5;
  const hash = (value) => {
    value = (value ^ mix) >>> 0;
    mix = mul32(mix, 0x931e8875);
    value = mul32(value, mix);
    return (value ^ (value >>> 16)) >>> 0;
  };
  const blend = (x, y) => {
    const result = (mul32(x, 0xca01f9dd) - mul32(y, 0x4973f715)) >>> 0;
    return (result ^ (result >>> 16)) >>> 0;
  };
  const pool = [hash(seed >>> 0), hash(0), hash(0), hash(0)];
  for (let from = 0; from < 4; from++) for (let to = 0; to < 4; to++) if (from !== to) pool[to] = blend(pool[to], hash(pool[from]));
  let out = 0x8b51f9dd;
  return Array.from({ length: count }, (_, i) => {
    let value = (pool[i % 4] ^ out) >>> 0;
    out = mul32(out, 0x58f38ded);
    value = mul32(value, out);
    return (value ^ (value >>> 16)) >>> 0;
  });
}

// np.random.Generator(np.random.PCG64(seed)), as far as dreams use it.
export class PCG64 {
  constructor(seed) {
    const words = seedWords(seed, 8).map(BigInt);
    const pair = (i) => words[i] | (words[i + 1] << 32n);
    const state = (pair(0) << 64n) | pair(2), stream = (pair(4) << 64n) | pair(6);
    this.increment = ((stream << 1n) | 1n) & M128;
    this.state = 0n;
    this.advance();
    this.state = (this.state + state) & M128;
    this.advance();
    this.kept = null;
  }

  advance() { this.state = (this.state * 0x2360ed051fc65da44385df649fccf645n + this.increment) & M128; }

  next64() {
    this.advance();
    const word = ((this.state >> 64n) ^ this.state) & M64, turn = this.state >> 122n;
    return ((word >> turn) | (word << ((64n - turn) & 63n))) & M64;
  }

  next32() {
    if (this.kept !== null) { const word = this.kept; this.kept = null; return word; }
    const word = this.next64();
    this.kept = word >> 32n;
    return word & M32;
  }

  // rng.integers(high) for high up to 2 ** 32 (Lemire's method).
  below(high) {
    if (high === 1) return 0;
    const span = BigInt(high);
    let product = this.next32() * span;
    if ((product & M32) < span) {
      const threshold = ((1n << 32n) - span) % span;
      while ((product & M32) < threshold) product = this.next32() * span;
    }
    return Number(product >> 32n);
  }

  // rng.integers(2 ** 63).
  below63() { return this.next64() >> 1n; }
}

// torch.Generator: the Mersenne Twister with 32 bits of the seed.
class Twister {
  constructor(seed) {
    this.words = new Uint32Array(624);
    this.words[0] = Number(seed & M32);
    for (let i = 1; i < 624; i++) {
      const before = this.words[i - 1] ^ (this.words[i - 1] >>> 30);
      this.words[i] = (mul32(before, 1812433253) + i) >>> 0;
    }
    this.at = 624;
  }

  next() {
    if (this.at === 624) this.refill();
    let y = this.words[this.at++];
    y ^= y >>> 11; y ^= (y << 7) & 0x9d2c5680; y ^= (y << 15) & 0xefc60000; y ^= y >>> 18;
    return y >>> 0;
  }

  refill() {
    const w = this.words;
    for (let i = 0; i < 624; i++) {
      const y = (w[i] & 0x80000000) | (w[(i + 1) % 624] & 0x7fffffff);
      w[i] = w[(i + 397) % 624] ^ (y >>> 1) ^ (y & 1 ? 0x9908b0df : 0);
    }
    this.at = 0;
  }
}

const BLOCK = 2048;

// wm_envs.world_model.RowStreams of one row: standard normals, drawn in blocks.
export class Noise {
  constructor(rng) {
    this.twister = new Twister(rng.below63());
    this.block = new Float32Array(BLOCK);
    this.at = BLOCK;
  }

  normal(count) {
    if (this.at + count > BLOCK) this.refill();
    this.at += count;
    return this.block.subarray(this.at - count, this.at);
  }

  // tensor.normal_(): Box-Muller in groups of 16, cosines in the first half and sines in the second.
  refill() {
    const block = this.block;
    for (let i = 0; i < BLOCK; i++) block[i] = (this.twister.next() & 0xffffff) / 0x1000000;
    for (let start = 0; start < BLOCK; start += 16) {
      for (let i = start; i < start + 8; i++) {
        const radius = Math.sqrt(-2 * Math.log(1 - block[i])), angle = 2 * Math.PI * block[i + 8];
        block[i] = radius * Math.cos(angle);
        block[i + 8] = radius * Math.sin(angle);
      }
    }
    this.at = 0;
  }
}

// The quantile of a standard normal, which is uniform.
export function uniform(normal) {
  const x = normal / Math.SQRT2, a = Math.abs(x);
  let tail; // erfc(|x|)
  if (a < 2.5) {
    let term = a, sum = a;
    for (let n = 1; n < 80 && Math.abs(term) > 1e-17; n++) { term *= (-a * a) / n; sum += term / (2 * n + 1); }
    tail = 1 - (2 / Math.sqrt(Math.PI)) * sum;
  } else {
    let fraction = 0;
    for (let n = 60; n > 0; n--) fraction = n / 2 / (a + fraction);
    tail = Math.exp(-a * a) / Math.sqrt(Math.PI) / (a + fraction);
  }
  return x < 0 ? tail / 2 : 1 - tail / 2;
}
