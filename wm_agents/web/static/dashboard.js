// The page of `wm dashboard`: polls files that grow, and draws their curves.
import { color, curves } from "./charts.js";
import { startTheme, toast } from "./page.js";

const $ = (id) => document.getElementById(id);
const token = new URLSearchParams(location.search).get("token");
const POLL_MS = 1000, KEPT = 2000;

let chosen = decodeURIComponent(location.hash.slice(1)), series = {}, offsets = {}, facts = null, drawn = {}, turn = 0, themed = 0;

async function ask(path, query = {}) {
  const url = new URL(path, location.href);
  url.search = new URLSearchParams({ ...query, ...(token ? { token } : {}) });
  const answer = await fetch(url);
  const found = await answer.json();
  if (!answer.ok) throw new Error(found.error ?? answer.statusText);
  return found;
}

const ago = (s) => (s < 90 ? `${Math.round(s)} s` : s < 5400 ? `${Math.round(s / 60)} min` : s < 129600 ? `${Math.round(s / 3600)} h` : `${Math.round(s / 86400)} d`);
const size = (bytes) => (bytes > 1e9 ? `${(bytes / 1e9).toFixed(1)} GB` : bytes > 1e6 ? `${(bytes / 1e6).toFixed(0)} MB` : `${(bytes / 1e3).toFixed(0)} kB`);
const make = (tag, properties = {}, ...children) => { const made = Object.assign(document.createElement(tag), properties); made.append(...children); return made; };

async function listRuns() {
  const runs = await ask("runs");
  $("subtitle").textContent = runs.length ? `${runs.length} run${runs.length > 1 ? "s" : ""}` : "there is no run in this folder yet";
  if (!runs.some((run) => run.name === chosen) && runs.length) choose(runs[0].name);
  $("list").replaceChildren(...runs.map((run) => {
    const live = run.age_s < 60 && !run.finished;
    const button = make("button", { type: "button", className: live ? "live" : "" },
      make("strong", { textContent: run.name === "." ? "this folder" : run.name }),
      make("span", { className: "quiet small", textContent: [run.family, run.env, run.finished ? "finished" : `updated ${ago(run.age_s)} ago`].filter(Boolean).join(" · ") }));
    button.setAttribute("aria-current", run.name === chosen);
    button.onclick = () => { choose(run.name); listRuns(); };
    return make("li", {}, button);
  }));
}

function choose(name) {
  chosen = name;
  history.replaceState(null, "", `${location.search}#${encodeURIComponent(name)}`);
  [series, offsets, drawn, facts] = [{}, {}, {}, null];
  $("charts").replaceChildren();
  $("media").replaceChildren();
  describe();
}

async function describe() {
  const name = chosen, found = await ask("run", { name });
  if (name !== chosen) return;
  facts = found;
  $("name").textContent = facts.name === "." ? "this folder" : facts.name;
  $("command").textContent = [facts.command, facts.started && `started ${facts.started}`].filter(Boolean).join(" · ");
  const disk = facts.budget_gb ? `${size(facts.bytes)} of ${facts.budget_gb} GB` : size(facts.bytes);
  const rows = { ...facts.state, updated: `${ago(facts.age_s)} ago`, "on disk": disk, "disk free": size(facts.free_bytes) };
  if (facts.threshold !== null) rows.threshold = facts.threshold;
  for (const [key, value] of Object.entries(facts.summary)) if (typeof value === "number") rows[key] = +value.toPrecision(4);
  $("meters").replaceChildren(...Object.entries(rows).map(([key, value]) => make("div", {}, make("dt", { textContent: key }), make("dd", { textContent: `${value}` }))));
  const names = facts.media.join("\n");
  if ($("media").dataset.names !== names) {
    $("media").dataset.names = names;
    $("media").replaceChildren(...facts.media.map((file) => {
      const query = new URLSearchParams({ file, ...(token ? { token } : {}) }), src = `file?${query}`;
      const view = /\.(mp4|webm)$/.test(file) ? make("video", { src, controls: true, loop: true, preload: "metadata" }) : make("img", { src, alt: file, loading: "lazy" });
      return make("figure", { className: "card" }, view, make("figcaption", { className: "quiet small", textContent: file }));
    }));
  }
}

async function follow() {
  const name = chosen;
  for (const file of facts?.parts ?? []) {
    for (let i = 0; i < 8; i++) {
      const { rows, at, restarted } = await ask("metrics", { file, from: offsets[file] ?? 0 });
      if (name !== chosen) return;
      if (restarted) for (const curve of Object.values(series)) delete curve[file];
      take(file, rows);
      const done = at === offsets[file];
      offsets[file] = at;
      if (done || rows.length === 0) break;
    }
  }
  draw();
}

function take(file, rows) {
  for (const { step, ...values } of rows) {
    for (const [metric, value] of Object.entries(values)) {
      const curve = ((series[metric] ??= {})[file] ??= []);
      curve.push([step, value]);
      if (curve.length > KEPT) series[metric][file] = curve.filter((_, i) => i % 2 === 1 || i === curve.length - 1);
    }
  }
}

// Metrics that belong on one chart: the returns of a round, a loss and its validation.
const TOGETHER = [
  ["Return by round", ["control/dream", "judge/real", "eval/dream/return", "eval/real/return"]],
  ["Training and validation loss", ["train/loss", "val/loss"]],
];
const HIDDEN = /\/(ci95|std|episodes|steps)$|wall_s$/;

function groups() {
  const left = Object.keys(series).filter((metric) => !HIDDEN.test(metric)), made = [];
  for (const [title, metrics] of TOGETHER) {
    const found = metrics.filter((metric) => left.includes(metric));
    if (found.length) made.push([title, found]);
  }
  const taken = new Set(made.flatMap(([, metrics]) => metrics));
  const rank = (metric) => ["return", "loss", "speed"].findIndex((word) => metric.includes(word)) & 7;
  for (const metric of left.filter((name) => !taken.has(name)).sort((a, b) => rank(a) - rank(b) || a.localeCompare(b))) made.push([metric, [metric]]);
  return made;
}

const TONES = ["dream", "real", "mark", "warn"];
function draw() {
  for (const [title, metrics] of groups()) {
    const stamp = metrics.map((metric) => Object.values(series[metric]).map((curve) => `${curve.length}:${curve.at(-1)}`)).join() + themed;
    if (drawn[title]?.stamp === stamp) continue;
    if (!drawn[title]) {
      const canvas = make("canvas", { className: "chart" }), legend = make("p", { className: "legend" }), value = make("output", { className: "quiet" });
      canvas.setAttribute("role", "img");
      canvas.setAttribute("aria-label", `${title} over steps`);
      $("charts").append(make("figure", { className: "card" }, make("figcaption", {}, make("h2", { textContent: title }), value), canvas, legend));
      drawn[title] = { canvas, legend, value };
    }
    const { canvas, legend, value } = drawn[title];
    drawn[title].stamp = stamp;
    const lines = [];
    metrics.forEach((metric, i) => {
      const tone = /real/.test(metric) ? "real" : /dream/.test(metric) ? "dream" : TONES[i % TONES.length];
      for (const [file, values] of Object.entries(series[metric])) {
        lines.push({ values, color: color(tone) });
        const ci = series[metric.replace(/[^/]+$/, "ci95")]?.[file];
        if (/judge\/real|return/.test(metric) && ci) for (const sign of [-1, 1]) {
          const by = new Map(ci);
          lines.push({ values: values.filter(([x]) => by.has(x)).map(([x, y]) => [x, y + sign * by.get(x)]), color: color(tone), width: 1, dash: [2, 3] });
        }
      }
    });
    const xs = lines.flatMap((line) => line.values.map(([x]) => x)), isReturn = metrics.some((metric) => /return|judge\/real|control\/dream/.test(metric));
    if (isReturn && facts?.threshold !== null && xs.length) lines.push({ values: [[Math.min(...xs), facts.threshold], [Math.max(...xs), facts.threshold]], color: color("mark"), width: 1, dash: [6, 4] });
    const last = lines.find((line) => line.values.length)?.values.at(-1)?.[1];
    value.textContent = last === undefined ? "" : `${+last.toPrecision(4)}`;
    if (metrics.length > 1 || isReturn) {
      const key = (name, tone) => make("span", { className: `key k-${tone === "real" ? "late" : tone}`, textContent: name });
      const keys = metrics.map((metric, i) => key(metric, /real/.test(metric) ? "real" : /dream/.test(metric) ? "dream" : TONES[i]));
      if (isReturn && facts?.threshold !== null) keys.push(key("threshold", "mark"));
      legend.replaceChildren(...keys);
    }
    curves(canvas, lines);
  }
}

async function tick() {
  try {
    if (turn++ % 5 === 0) { await listRuns(); if (chosen) await describe(); }
    await follow();
  } catch (error) {
    toast(error.message);
  }
  setTimeout(tick, POLL_MS);
}

startTheme($("theme"), () => { themed += 1; draw(); });
addEventListener("resize", () => { themed += 1; draw(); });
tick();
