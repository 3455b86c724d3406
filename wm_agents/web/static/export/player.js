// The page of a dream without a server: the model runs here.
import { Controls } from "./controls.js";
import { color, curves, strip } from "./charts.js";
import { View } from "./drawings.js";
import { Dream } from "./dream.js";
import { startTheme, toast } from "./page.js";

const $ = (id) => document.getElementById(id);
const KEPT = 600;

let dream, facts, view, controls, person, pilot = "person", paused = false, speed = 1, seed = 0;
let ret = 0, best = null, over = "", history = [], due = 0, steps = 0, seen = 0, overAt = 0;

async function get(url) {
  const answer = await fetch(url);
  if (!answer.ok) throw new Error(`${url.pathname}: ${answer.status} ${answer.statusText}`);
  return answer.arrayBuffer();
}

function restart(next) {
  seed = next;
  $("seed").value = seed;
  dream.reset(seed, $("start").value);
  [ret, over, history] = [0, "", []];
  show(0, 1);
}

function choose() {
  if (pilot === "person") return person;
  if (pilot in dream.policies) return dream.policies[pilot](dream.feat());
  if (facts.controls.kind === "discrete") return [Math.floor(Math.random() * facts.controls.names.length) + facts.controls.start];
  return facts.controls.dims.map(({ low, high }) => low + Math.random() * (high - low));
}

function step() {
  if (over) return;
  const act = choose(), { rew, cont, term, trunc } = dream.step(act);
  ret += rew;
  steps += 1;
  over = term ? "terminated" : trunc ? "truncated" : "";
  if (over) { best = best === null ? ret : Math.max(best, ret); overAt = performance.now(); $("best").textContent = best.toFixed(1); }
  if (pilot !== "person") controls.show(act);
  show(rew, cont);
}

function show(rew, cont) {
  history.push([dream.age, ret, cont]);
  if (history.length > KEPT) history.shift();
  view.draw(dream.decode());
  $("dream-ret").textContent = ret.toFixed(1);
  $("dream-state").textContent = over ? `over: ${over}` : `step ${dream.age} · reward ${rew.toFixed(2)}`;
  document.querySelector(".world").classList.toggle("over", Boolean(over));
  strip($("latent"), Int8Array.from(dream.feat(), (x) => Math.max(-127, Math.min(127, 32 * x))));
}

function charts() {
  curves($("ret-chart"), [{ values: history.map(([t, y]) => [t, y]), color: color("dream") }], { grow: 1 });
  curves($("cont-chart"), [{ values: history.map(([t, , y]) => [t, y]), color: color("dream") }], { low: 0, high: 1 });
}

let drawn = -1;
function frame(now) {
  requestAnimationFrame(frame);
  controls.tick();
  if (over && pilot !== "person" && now - overAt > 1500 && !paused) restart(seed + 1);
  if (paused || now < due) { if (drawn !== dream.age) { drawn = dream.age; charts(); } return; }
  // At most a few steps a frame: a slow device dreams slower, it does not stop.
  const period = 1000 / (facts.fps * speed);
  for (let i = 0; i < 4 && due <= now; i++) { step(); due = Math.max(due + period, now - 100); }
  charts();
}

function showSettings() {
  for (const button of $("pilots").children) button.setAttribute("aria-checked", button.dataset.pilot === pilot);
  $("pause").lastElementChild.textContent = paused ? "Play" : "Pause";
  $("pause").firstElementChild.textContent = paused ? "▶" : "❚❚";
  $("temperature").value = dream.temperature;
  $("temperature-out").textContent = dream.temperature.toFixed(2);
  $("speed-out").textContent = `${+speed.toFixed(2)} × real time`;
}

function fly(name) { pilot = name; showSettings(); }

async function start() {
  dream = await Dream.load(new URL(".", location.href), get);
  facts = dream.facts;
  document.title = `${facts.name} · dream`;
  $("title").textContent = `A dream of ${facts.env.split(":").pop()}`;
  $("subtitle").textContent = `${facts.name} · ${facts.parameters.toLocaleString("en")} parameters, in your browser`;
  $("latent-note").textContent = `(${facts.feat} features)`;
  view = new View($("dream-view"), facts);
  $("start").disabled = !("anywhere" in dream.banks);
  const names = ["person", ...facts.policies, "random"];
  $("pilots").replaceChildren(...names.map((name) => {
    const label = name === "person" ? "you" : name === "random" ? name : `policy (${name})`;
    const button = Object.assign(document.createElement("button"), { type: "button", textContent: label });
    button.setAttribute("role", "radio");
    button.dataset.pilot = name;
    button.onclick = () => fly(name);
    return button;
  }));
  controls = new Controls(facts.controls, $("pad"), {
    act: (act) => { person = Array.isArray(act) ? act : [act]; },
    touch: () => { if (pilot !== "person") fly("person"); },
  });
  controls.update();
  $("keys").textContent = `${controls.help()}. Gamepads work too. P pause · N step · R restart · T who acts`;
  const toggles = {
    pause: () => { paused = !paused; showSettings(); }, step: () => { paused = true; showSettings(); step(); charts(); }, restart: () => restart(seed + 1),
  };
  for (const [id, run] of Object.entries(toggles)) $(id).onclick = run;
  const shortcuts = { KeyP: toggles.pause, KeyN: toggles.step, KeyR: toggles.restart, KeyT: () => fly(names[(names.indexOf(pilot) + 1) % names.length]) };
  addEventListener("keydown", (event) => {
    if (!event.repeat && !event.ctrlKey && !event.metaKey && !event.altKey && !/^(INPUT|SELECT)$/.test(event.target.tagName)) shortcuts[event.code]?.();
  });
  $("temperature").oninput = (event) => { dream.temperature = +event.target.value; showSettings(); };
  $("speed").oninput = (event) => { speed = 2 ** +event.target.value; showSettings(); };
  $("start").onchange = () => restart(seed);
  $("seed").onchange = (event) => restart(Math.min(2 ** 31 - 1, Math.max(0, Math.round(+event.target.value) || 0)));
  setInterval(() => { $("rate").textContent = paused ? "paused" : `${steps - seen} steps/s`; seen = steps; }, 1000);
  restart(0);
  showSettings();
  requestAnimationFrame(frame);
}

startTheme($("theme"), () => {});
start().catch((error) => { $("subtitle").textContent = `cannot load the dream: ${error.message}`; toast(error.message, true); });
