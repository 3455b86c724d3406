// The page of `wm dashboard`: polls files that grow, and shows the chosen run.
import { Curves } from "./run_charts.js";
import { Live, showFidelity, showMedia, showStrips, showTasks } from "./run_parts.js";
import { ago, ask, make, size, text } from "./run_text.js";
import { startTheme, toast } from "./page.js";

const $ = (id) => document.getElementById(id);
const STAGES = ["collect", "learn", "control", "judge"];
const SAYS = { collect: "collect real episodes", learn: "train the model", control: "train the controller", judge: "evaluate" };

let chosen = decodeURIComponent(location.hash.slice(1)), facts = null, turn = 0, wait = 1000, choice = 0, revealed = null, busy = false;
const curves = new Curves($("returns"), $("groups")), live = new Live($("live"));

const isRunning = (run) => run.age_s < 90 && !run.finished;
const title = (name) => (name === "." ? "This run" : name);

async function listRuns() {
  const runs = await ask("runs"), active = runs.filter(isRunning).length;
  $("subtitle").textContent = runs.length ? `${runs.length} run${runs.length > 1 ? "s" : ""}${active ? `, ${active} running` : ""}` : "There is no run in this folder yet. This page shows the first one as soon as it starts.";
  $("main").classList.toggle("empty", !runs.length);
  $("main").classList.toggle("single", runs.length < 2);
  if (!runs.some((run) => run.name === chosen) && runs.length) choose(runs[0].name);
  const focused = document.activeElement?.dataset?.run;
  $("list").replaceChildren(...runs.map((run) => {
    const running = isRunning(run);
    const state = running ? "running" : run.finished ? "finished" : `${ago(run.age_s)} ago`;
    const button = make("button", { type: "button" },
      make("strong", {}, ...(running ? [make("span", { className: "live-dot" })] : []), title(run.name)),
      make("span", { className: "quiet small", textContent: [run.env, state].filter(Boolean).join(" · ") }));
    button.setAttribute("aria-current", run.name === chosen);
    button.dataset.run = run.name;
    button.onclick = () => { choose(run.name); listRuns(); };
    return make("li", {}, button);
  }));
  revealChosen();
  if (focused !== undefined) [...$("list").querySelectorAll("button")].find((button) => button.dataset.run === focused)?.focus();
}

// Once after each choice, so that the list can be scrolled freely.
function revealChosen() {
  const nav = $("list").parentElement, item = nav.querySelector("[aria-current=true]");
  if (revealed === choice || !item) return;
  revealed = choice;
  const [box, place] = [item.getBoundingClientRect(), nav.getBoundingClientRect()];
  if (box.top < place.top || box.bottom > place.bottom) nav.scrollTop += box.top - place.top - nav.clientHeight / 3;
}

function choose(name) {
  chosen = name;
  history.replaceState(null, "", `${location.search}#${encodeURIComponent(name)}`);
  facts = null;
  choice += 1; // Answers for the run before are dropped.
  curves.clear();
  live.follow(null);
  refresh();
}

async function describe() {
  const mine = choice, found = await ask("run", { name: chosen });
  if (mine !== choice) return;
  facts = found;
  curves.facts = facts;
  $("name").textContent = title(facts.name);
  $("command").textContent = facts.command;
  const running = isRunning(facts);
  $("status").hidden = false;
  $("status").className = `chip ${running ? "running" : ""}`;
  $("status").textContent = running ? "running" : facts.finished ? "finished" : `no change for ${ago(facts.age_s)}`;
  $("bare").hidden = facts.parts.length > 0;
  showStages();
  showMeters(); // Before the metrics, which take a while in a long run.
  showTasks($("tasks"), facts.tasks);
  showStrips(facts.strips, facts.name);
  showMedia(facts.media);
  showFidelity(facts.fidelity);
  live.follow(facts.live, running);
}

function showStages() {
  const { round, rounds, stage, finished } = facts, at = STAGES.indexOf(stage);
  $("stages").hidden = finished || at < 0 || (rounds && round >= rounds);
  if (finished || at < 0) return;
  $("stages").replaceChildren(...STAGES.map((name, i) => {
    const item = make("li", { className: i < at ? "past" : i === at ? "now" : "", textContent: SAYS[name] });
    if (i === at) item.setAttribute("aria-current", "step");
    return item;
  }));
  if (rounds) $("status").textContent += round < rounds ? ` · round ${round}, the last will be ${rounds - 1}` : ` · all ${rounds} rounds are done`;
}

function meter(name, value, { small = "", share = null, tone = "" } = {}) {
  const box = make("dd", {}, value, " ", make("small", { textContent: small }));
  if (share !== null) box.append(make("progress", { max: 1, value: Math.min(1, share), ariaLabel: `${name} against its limit` }));
  return make("div", { className: tone ? `of-${tone}` : "" }, make("dt", { textContent: name }), box);
}

function showMeters() {
  if (!facts) return;
  const { final, bytes, free_bytes, data_gb, data_bytes, ram_gb, budget_s, spent_s } = facts, found = [];
  const last = (metric) => curves.last(metric), memory = last("memory/process_gb");
  const real = final.real ?? last("judge/real") ?? last("eval/real/return"), dream = final.dream ?? last("judge/dream") ?? last("control/dream") ?? last("dream/return");
  const spread = final.ci95 ?? last("judge/ci95");
  const tasks = facts.tasks.length, solved = facts.tasks.filter((task) => task.status === "solved").length;
  if (tasks) found.push(meter("tasks solved", text(solved), { small: `of ${text(tasks)}`, share: solved / tasks }));
  if (real !== null && !tasks) found.push(meter(final.real === undefined ? "real return" : "held-out real return", text(real), { tone: "real", small: spread ? `± ${text(spread)}` : "" }));
  if (dream !== null && !tasks) found.push(meter("dream return", text(dream), { tone: "dream" }));
  if (facts.threshold !== null) found.push(meter("threshold", text(facts.threshold)));
  const steps = final.real_steps ?? facts.real_steps, most = facts.max_real_steps;
  if (steps !== null) found.push(meter("real steps", text(steps), most ? { small: `of ${text(most)}`, share: steps / most } : {}));
  if (!facts.finished) for (const [metric, unit] of [["speed/updates_per_s", "updates/s"], ["speed/real_steps_per_s", "real steps/s"]]) if (last(metric) !== null) found.push(meter("speed", text(last(metric)), { small: unit }));
  found.push(meter("on disk", size(bytes), { small: `${size(free_bytes)} free`, share: bytes / (bytes + free_bytes) }));
  if (data_gb) found.push(meter("episodes on disk", size(data_bytes), { small: `of ${text(data_gb)} GB`, share: data_bytes / (1e9 * data_gb) }));
  if (memory !== null) found.push(meter("memory", `${text(memory)} GB`, ram_gb ? { small: `of ${text(ram_gb)} GB`, share: memory / ram_gb } : {}));
  const spent = final.train_wall_s ?? spent_s;
  if (spent) found.push(meter(final.train_wall_s ? "training time" : "time", ago(spent), budget_s ? { small: `of ${ago(budget_s)}`, share: spent / budget_s } : {}));
  $("meters").replaceChildren(...found);
}

async function follow() {
  const mine = choice;
  for (const file of facts?.parts ?? []) {
    for (let i = 0; i < 8; i++) {
      const { rows, at, restarted } = await ask("metrics", { file, from: curves.offsets[file] ?? 0 });
      if (mine !== choice) return;
      if (restarted) curves.forget(file);
      curves.take(file, rows);
      const done = at === curves.offsets[file];
      curves.offsets[file] = at;
      if (done || rows.length === 0) break;
    }
  }
  curves.draw();
  showMeters();
}

// One at a time, because two would take the same rows twice.
async function refresh() {
  if (busy || chosen === "") return;
  busy = true;
  try {
    await describe();
    await follow();
  } catch (error) {
    toast(error.message);
  } finally {
    busy = false;
  }
}

async function tick() {
  try {
    if (turn++ % 5 === 0) await listRuns();
  } catch (error) {
    toast(error.message);
  }
  await refresh();
  setTimeout(tick, wait);
}

async function start() {
  const view = await ask("view");
  wait = view.refresh_ms;
  curves.most = view.points;
  await tick();
}

startTheme($("theme"), () => curves.draw(true));
addEventListener("resize", () => curves.draw(true));
start().catch((error) => { $("subtitle").textContent = error.message; });
