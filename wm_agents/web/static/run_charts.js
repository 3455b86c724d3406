// The curves of a run: rows of its metrics files, grouped into charts that belong together.
import { color, curves } from "./charts.js";
import { make, text } from "./run_text.js";

// A chart: its title, its metrics (tone, name), and the unit of its x axis.
const RETURNS = [
  { title: "Return of each round", unit: "round", metrics: { "control/dream": ["dream", "dream, at the end of its training"], "judge/dream": ["dream", "dream"], "judge/real": ["real", "real environment"] }, level: true },
  { title: "Return", unit: "real step", metrics: { "eval/dream/return": ["dream", "dream"], "eval/real/return": ["real", "real environment"] }, level: true },
  { title: "Controller in its dream", unit: "generation", metrics: { "dream/return": ["dream", "dream return"] } },
  { title: "While collecting", unit: "", metrics: { "collect/return": ["real", "real return, with exploration"] } },
];
const LOSSES = [{ title: "Loss of the model", unit: "update", metrics: { "train/loss": ["dream", "training"], "val/loss": ["mark", "validation"] } }];
const GROUPS = [
  ["Losses", LOSSES, /(^|\/)loss(\/|$)|^val\/|^learn\/val/],
  ["Speed and memory", [], /^speed\/|^memory\//],
];
const NAMES = { "speed/updates_per_s": "Updates per second", "speed/generation_s": "Seconds per generation", "speed/real_steps_per_s": "Real steps per second", "memory/process_gb": "Memory of the training process, GB", "train/lr": "Learning rate" };
const LOSSES_OF = { con: "continuation", cont: "continuation", dyn: "dynamics", rep: "representation", rec: "reconstruction", rew: "reward", "end rew": "reward at the end", end: "termination", here: "objects that stay", move: "motion of objects", new: "objects that appear", term: "termination", repval: "value of replayed steps", kl: "Kullback-Leibler divergence" };
const HIDDEN = /\/(ci95|std|dream_std|episodes|steps)$|wall_s$|^val\/best$/;

function named(metric) {
  const words = metric.replace(/_/g, " "), [, loss] = /^train\/loss\/(.+)/.exec(words) ?? [];
  if (loss) return `Loss: ${LOSSES_OF[loss] ?? loss}`;
  return NAMES[metric] ?? words.replace(/^learn\/val /, "Validation: ");
}

export class Curves {
  constructor(first, groups) {
    Object.assign(this, { first, groups, most: 2000, facts: null });
    this.clear();
  }

  clear() {
    Object.assign(this, { series: {}, offsets: {}, charts: {}, places: {} });
    this.first.replaceChildren();
    this.groups.replaceChildren();
  }

  forget(file) { for (const curve of Object.values(this.series)) delete curve[file]; }

  take(file, rows) {
    for (const { step, ...values } of rows) {
      for (const [metric, value] of Object.entries(values)) {
        const curve = ((this.series[metric] ??= {})[file] ??= []);
        curve.push([step, value]);
        if (curve.length > this.most) this.series[metric][file] = curve.filter((_, i) => i % 2 === 1 || i === curve.length - 1);
      }
    }
  }

  // The newest value of a metric, or null.
  last(metric) {
    const files = Object.values(this.series[metric] ?? {}).filter((curve) => curve.length);
    return files.length ? files.at(-1).at(-1)[1] : null;
  }

  draw(all = false) {
    const left = new Set(Object.keys(this.series).filter((metric) => !HIDDEN.test(metric)));
    const take = (chart, place) => {
      const found = Object.keys(chart.metrics).filter((metric) => left.has(metric));
      if (!found.length) return;
      if (found.includes("judge/dream")) { left.delete("control/dream"); found.splice(found.indexOf("control/dream"), found.includes("control/dream") ? 1 : 0); }
      found.forEach((metric) => left.delete(metric));
      this.chart(chart, found, place(), all);
    };
    for (const chart of RETURNS) take(chart, () => this.first);
    const single = (metric) => ({ title: named(metric), unit: "", metrics: { [metric]: [/real/.test(metric) ? "real" : "dream", ""] } });
    for (const [title, charts, pattern] of GROUPS) {
      for (const chart of charts) take(chart, () => this.group(title));
      for (const metric of [...left].filter((name) => pattern.test(name)).sort()) take(single(metric), () => this.group(title));
    }
    for (const metric of [...left].sort()) take(single(metric), () => this.group("Other metrics", true));
  }

  // The place of a group, made when its first chart appears; the last group is folded.
  group(title, folded = false) {
    if (this.places[title]) return this.places[title];
    const charts = make("div", { className: "charts" });
    const section = folded ? make("details", { className: "card" }, make("summary", { textContent: title }), charts) : make("section", {}, make("h2", { className: "group", textContent: title }), charts);
    if (folded) section.addEventListener("toggle", () => this.draw(true));
    const last = this.groups.querySelector("details");
    this.groups.insertBefore(section, folded ? null : last);
    return (this.places[title] = charts);
  }

  chart(chart, metrics, place, all) {
    const key = chart.title + Object.keys(chart.metrics)[0], stamp = metrics.map((metric) => Object.values(this.series[metric]).map((curve) => `${curve.length}:${curve.at(-1)}`)).join();
    const known = (this.charts[key] ??= this.build(chart, place));
    if (known.stamp === stamp && !all) return;
    known.stamp = stamp;
    const lines = [], keys = [];
    for (const metric of metrics) {
      const [tone, name] = chart.metrics[metric], files = Object.entries(this.series[metric]).filter(([, values]) => values.length);
      files.forEach(([file, values], i) => {
        // Earlier rounds are faint.
        const alpha = i === files.length - 1 ? 1 : Math.max(0.06, Math.min(0.3, 3 / files.length)), ci = new Map(this.series[metric.replace(/[^/]+$/, "ci95")]?.[file] ?? []);
        const band = tone === "real" && metric !== "collect/return" ? values.filter(([x]) => ci.has(x)).map(([x, y]) => [x, y - ci.get(x), y + ci.get(x)]) : [];
        lines.push({ values, color: color(tone), alpha, fill: metrics.length === 1 && alpha === 1, band });
      });
      if (name) keys.push(make("span", { className: `key t-${tone}`, textContent: name }));
    }
    // A dream may be shorter than the episodes that the threshold is meant for.
    const threshold = chart.level && metrics.some((metric) => /real/.test(metric)) ? this.facts?.threshold : null, levels = threshold === null || threshold === undefined ? [] : [{ y: threshold, color: color("mark"), label: `threshold ${text(threshold)}` }];
    const value = this.last(metrics.at(-1));
    known.value.textContent = value === null ? "" : text(value);
    const count = lines.reduce((sum, { values }) => sum + values.length, 0);
    known.canvas.setAttribute("aria-label", `${chart.title} by ${chart.unit || "step"}: ${count} values, the last is ${known.value.textContent}`);
    known.legend.replaceChildren(...keys);
    curves(known.canvas, lines, { levels, unit: chart.unit });
  }

  build(chart, place) {
    const canvas = make("canvas", { className: "chart" }), legend = make("p", { className: "legend" }), value = make("output", { className: "quiet" });
    canvas.setAttribute("role", "img");
    place.append(make("figure", { className: "card" }, make("figcaption", {}, make("h3", { textContent: chart.title }), value), canvas, legend));
    return { canvas, legend, value };
  }
}
