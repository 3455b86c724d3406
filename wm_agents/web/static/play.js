// The page of `wm play`: sends what the visitor does, shows what the server sends.
import { Controls } from "./controls.js";
import { color, curves, strip } from "./charts.js";
import { View } from "./drawings.js";
import { startTheme, toast, unpack } from "./page.js";

const $ = (id) => document.getElementById(id);
const KEPT = 600; // Steps in the charts.
const number = (x, digits = 1) => (x === null || x === undefined ? "–" : x.toFixed(digits));

let stage, views, controls, settings = {}, last = null, dirty = false, history = [], syncs = [], returns = [];
let socket, finished = false, seen = 0, steps = 0, restarting = null;
let ended = null; // The step at which the real episode ended, also while the dream continues.

function send(message) {
  if (socket?.readyState === WebSocket.OPEN) socket.send(typeof message === "string" ? message : JSON.stringify(message));
}

function connect() {
  const url = new URL("play", location.href);
  url.protocol = url.protocol.replace("http", "ws");
  url.search = location.search;
  socket = new WebSocket(url);
  socket.binaryType = "arraybuffer";
  socket.onmessage = ({ data }) => receive(...unpack(data));
  socket.onclose = () => {
    if (finished) return;
    finished = true;
    toast("The connection has ended. Reload the page to play again.", true);
    $("subtitle").textContent = "disconnected";
  };
}

function receive(about, parts) {
  const { kind } = about;
  if (kind === "step") { send("seen"); take(about, parts); }
  else if (kind === "hello") greet(about);
  else if (kind === "settings") { settings = about; showSettings(); }
  else if (kind === "recording") showClip(about.format, parts[0]);
  else if (kind === "error") toast(about.text);
  else if (kind === "closed") { finished = true; $("subtitle").textContent = about.text; toast(about.text, true); }
}

function greet(hello) {
  stage = hello.stage;
  document.title = `${stage.name} · dream`;
  $("title").textContent = `A dream of ${stage.env.split(":").pop()}`;
  const family = { vmc: "V-M-C", dreamerv3: "DreamerV3", tdmpc2: "TD-MPC2", ensemble: "ensemble", objects: "object model" }[stage.family] || stage.family;
  $("subtitle").textContent = `${stage.name} · ${family}, ${stage.parameters.toLocaleString("en")} parameters · real time is ${+stage.fps.toFixed(1)} steps/s`;
  document.body.classList.toggle("alone", !stage.real);
  if (!stage.real) toast(`Without the real environment: ${stage.no_real}`);
  views = [new View($("dream-view"), stage), new View($("real-view"), stage)];
  $("dis-box").hidden = $("dis-label").hidden = stage.members < 2;
  $("latent-note").textContent = `(${stage.feat} features)`;
  $("start").disabled = !stage.real && !stage.starts.includes("anywhere");
  $("pilots").replaceChildren(...stage.pilots.map((name) => {
    const button = Object.assign(document.createElement("button"), { type: "button", textContent: name === "person" ? "you" : name });
    button.setAttribute("role", "radio");
    button.dataset.pilot = name;
    button.onclick = () => send({ pilot: name });
    return button;
  }));
  controls = new Controls(stage.controls, $("pad"), {
    act: (act) => { if (settings.pilot === "person") send({ act }); },
    touch: () => { if (settings.pilot && settings.pilot !== "person") { settings.pilot = "person"; send({ pilot: "person" }); controls.sent = null; } },
  });
  $("keys").textContent = `${controls.help()}. Gamepads work too. P pause · N step · R restart · E wake up · C record · T who acts`;
  frame();
}

function take(about, parts) {
  if (about.step === 0) { history = []; syncs = []; returns = []; restarting = ended = null; }
  if (about.realOver) ended ??= about.step;
  last = { ...about, parts };
  steps += 1;
  history.push(last);
  returns.push([about.step, about.ret, about.realRet]);
  if (about.age === 0 && about.step > 0 && !about.awake) syncs.push(about.step);
  if (history.length > KEPT) history.shift();
  if (returns.length > KEPT) returns.shift();
  history.at(-2) && (history.at(-2).parts = null);
  dirty = true;
  restartSoon();
}

// Policies go on to the next seed by themselves.
function restartSoon() {
  if (last?.over && !restarting && settings.pilot !== "person" && !settings.paused) restarting = setTimeout(() => send({ restart: null }), 1500);
}

function frame() {
  requestAnimationFrame(frame);
  if (settings.pilot === "person") controls.tick(); else { controls.pads = controls.gamepad(); if (controls.pads?.used) controls.touch(); }
  if (!dirty || !last) return;
  dirty = false;
  const { parts } = last;
  views[0].draw(parts[0]);
  if (stage.real) views[1].draw(parts[1]);
  strip($("latent"), new Int8Array(parts.at(-1).buffer, parts.at(-1).byteOffset, parts.at(-1).byteLength));
  if (settings.pilot !== "person") controls.show(last.act);
  showNumbers();
  showCharts();
}

// In words, how one world has ended and the other has not; empty where that is not so.
function partedEnds() {
  if (!stage.real || last.awake) return "";
  if (last.realOver && !last.dreamOver) return `The real episode ended at step ${ended}, and the dream continues.`;
  return last.dreamOver === "terminated" && !last.realOver ? `The dream ended at step ${last.step}, and the real episode had not.` : "";
}

function showNumbers() {
  $("dream-ret").textContent = number(last.ret);
  $("real-ret").textContent = number(last.realRet);
  $("rew").textContent = number(last.rew, 2);
  $("cont").textContent = number(last.cont, 3);
  $("dis").textContent = number(last.disagreement, 3);
  $("at").textContent = last.step;
  const asleep = `${last.age} steps on its own`;
  $("dream-state").textContent = last.dreamOver && !last.awake ? `over: ${last.dreamOver}` : last.awake ? "follows reality" : asleep;
  $("real-state").textContent = last.realOver ? `over: ${last.realOver}` : last.awake ? "in control" : "same actions";
  document.querySelector(".dream").classList.toggle("over", Boolean(last.dreamOver) && !last.awake);
  $("real-world").classList.toggle("over", Boolean(last.realOver));
  document.querySelector(".dream").classList.toggle("leads", !last.awake);
  $("real-world").classList.toggle("leads", last.awake);
  const verdict = $("verdict");
  const parted = partedEnds();
  verdict.classList.toggle("left", last.left !== null || parted !== "");
  const text = !stage.real ? "" : last.awake ? "Awake: reality is in control, and the dream follows it frame by frame."
    : last.left !== null ? `The dream left reality at step ${last.left}: it is further from reality than reality was one second earlier.`
    : parted || (last.dreamOver && last.realOver ? "Both episodes are over." : "The dream is near reality.");
  if (verdict.textContent !== text) verdict.textContent = text;
}

function showCharts() {
  const line = (pick) => history.map((moment) => [moment.step, pick(moment)]);
  const error = (i) => line((moment) => (moment.errors ? moment.errors[i] : null));
  const marks = syncs.map((x) => [x, color("grey"), ""]);
  const left = history.map((moment) => moment.left).filter((x, i, all) => x !== null && x !== all[i - 1]);
  for (const x of left) marks.push([x, color("mark"), `leaves reality, step ${x}`]);
  if (ended !== null && last.left === null && partedEnds()) marks.push([ended, color("mark"), `reality ends, step ${ended}`]);
  if (stage.real) curves($("div-chart"), [
    { values: error(2), color: color("grey"), width: 1.5 }, { values: error(1), color: color("real"), width: 1.5 }, { values: error(0), color: color("dream"), width: 2.5 },
  ], { low: 0, marks, span: [history[0].step, last.step] });
  const both = [{ values: returns.map(([x, y]) => [x, y]), color: color("dream") }];
  if (stage.real) both.push({ values: returns.map(([x, , y]) => [x, y]), color: color("real") });
  curves($("ret-chart"), both, { grow: 1 });
  const lines = [{ values: line((moment) => moment.cont), color: color("dream") }];
  if (stage.members > 1) lines.push({ values: line((moment) => Math.min(1, moment.disagreement ?? 0)), color: color("mark"), width: 1.5 });
  curves($("cont-chart"), lines, { low: 0, high: 1 });
}

function showSettings() {
  for (const button of $("pilots").children) button.setAttribute("aria-checked", button.dataset.pilot === settings.pilot);
  $("pause").lastElementChild.textContent = settings.paused ? "Play" : "Pause";
  $("pause").firstElementChild.textContent = settings.paused ? "▶" : "❚❚";
  $("wake").lastElementChild.textContent = settings.awake ? "Fall asleep" : "Wake up";
  $("wake").firstElementChild.textContent = settings.awake ? "☾" : "☼";
  $("record").setAttribute("aria-pressed", settings.recording);
  $("record").lastElementChild.textContent = settings.recording ? "Save" : "Record";
  $("temperature").value = settings.temperature;
  $("temperature-out").textContent = settings.temperature.toFixed(2);
  $("speed").value = Math.log2(settings.speed);
  $("speed-out").textContent = `${+settings.speed.toFixed(2)} × real time`;
  $("start").value = settings.start;
  if (document.activeElement !== $("horizon")) $("horizon").value = settings.horizon ?? "";
  if (document.activeElement !== $("seed")) $("seed").value = settings.seed;
  document.body.dataset.pilot = settings.pilot;
  if (settings.pilot === "person" && controls) controls.sent = null;
  restartSoon();
}

function showClip(format, bytes) {
  const url = URL.createObjectURL(new Blob([bytes], { type: format === "gif" ? "image/gif" : "video/mp4" }));
  const view = format === "gif" ? Object.assign(new Image(), { src: url, alt: "the recording" })
    : Object.assign(document.createElement("video"), { src: url, controls: true, loop: true, autoplay: true, muted: true });
  $("clip-view").replaceChildren(view);
  Object.assign($("clip-save"), { href: url, download: `${stage.name}.${format}` });
  $("clip").onclose = () => { URL.revokeObjectURL(url); $("clip-view").replaceChildren(); };
  $("clip-note").hidden = !stage.real;
  $("clip").showModal();
}

const toggles = {
  pause: () => send({ pause: !settings.paused }),
  step: () => send({ step: true }),
  restart: () => send({ restart: $("seed").value !== "" && +$("seed").value !== settings.seed ? +$("seed").value : null }),
  wake: () => send({ awake: !settings.awake }),
  record: () => send({ record: settings.recording ? $("format").value : true }),
};
for (const [id, run] of Object.entries(toggles)) $(id).onclick = run;
const SHORTCUTS = { KeyP: toggles.pause, KeyN: toggles.step, KeyR: toggles.restart, KeyE: toggles.wake, KeyC: toggles.record,
  KeyT: () => send({ pilot: stage.pilots[(stage.pilots.indexOf(settings.pilot) + 1) % stage.pilots.length] }) };
addEventListener("keydown", (event) => {
  if (event.repeat || event.ctrlKey || event.metaKey || event.altKey || /^(INPUT|SELECT)$/.test(event.target.tagName)) return;
  SHORTCUTS[event.code]?.();
});
$("temperature").oninput = (event) => send({ temperature: +event.target.value });
$("speed").oninput = (event) => send({ speed: 2 ** +event.target.value });
$("start").onchange = (event) => send({ start: event.target.value });
$("horizon").onchange = (event) => send({ horizon: event.target.value === "" ? null : Math.round(+event.target.value) });
$("seed").onchange = (event) => { if (event.target.value !== "") send({ restart: Math.round(+event.target.value) }); };
setInterval(() => { $("rate").textContent = settings.paused ? "paused" : `${steps - seen} steps/s shown`; seen = steps; }, 1000);

startTheme($("theme"), () => { dirty = true; });
connect();
