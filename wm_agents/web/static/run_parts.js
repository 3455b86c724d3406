// The parts of the dashboard besides its curves: live frames, strips, videos, tasks of a curriculum, fidelity.
import { color, curves } from "./charts.js";
import { address, make, text } from "./run_text.js";

const $ = (id) => document.getElementById(id);
const SMALL = 128; // Frames up to this height are enlarged without smoothing.
const crisp = (image, rows = 1) => image.classList.toggle("small-frame", image.naturalHeight / rows <= SMALL);

// The newest frame of the real environment, replaced as the run replaces it.
export class Live {
  constructor(figure) {
    Object.assign(this, { figure, file: null, tag: "", at: 0, image: $("live-view") });
    this.image.onload = () => crisp(this.image);
    this.poll();
  }

  follow(file, running = false) {
    if (file !== this.file) Object.assign(this, { file, tag: "", at: 0 });
    this.figure.hidden = file === null || !running;
  }

  async poll() {
    let wait = 1000;
    if (this.file !== null && !this.figure.hidden && !document.hidden) {
      try {
        const answer = await fetch(address("file", { file: this.file })), tag = answer.headers.get("etag");
        if (answer.ok && tag !== this.tag) {
          const before = this.image.src;
          this.image.src = URL.createObjectURL(await answer.blob());
          if (before) URL.revokeObjectURL(before);
          Object.assign(this, { tag, at: performance.now() });
        }
      } catch { /* The next poll of the run reports it. */ }
      const still = performance.now() - this.at > 5000;
      this.figure.classList.toggle("still", still);
      $("live-note").textContent = still ? "the last frame; no real steps at present" : "the real environment, as the model observes it";
      wait = still ? 1000 : 120;
    }
    setTimeout(() => this.poll(), wait);
  }
}

let strips = [], run = "", shown = "";

export function showStrips(found, name) {
  const followed = +$("strips-at").value === strips.length - 1 || !strips.length;
  [strips, run] = [found, name];
  $("strips").hidden = !found.length;
  if (!found.length) return;
  $("strips-at").max = found.length - 1;
  $("strips-at").hidden = found.length < 2;
  if (followed) $("strips-at").value = found.length - 1;
  $("strips-at").oninput = showRound;
  showRound();
}

function showRound() {
  const { title, files } = strips[Math.min(+$("strips-at").value, strips.length - 1)];
  const parts = title.slice(run === "." ? 0 : run.length + 1).split("/").filter((part) => part !== "tmp");
  $("strips-of").textContent = parts.join(" ").replace(/^round-0*(\d)/, "round $1").replace(/evaluations 0*(\d)/, "evaluation $1");
  if (files.join() === shown) return;
  shown = files.join();
  $("strips-view").replaceChildren(...files.map((file) => {
    const from = +(/step-(\d+)/.exec(file)?.[1] ?? 0), axis = make("div", { className: "axis" });
    const image = make("img", { src: address("file", { file }), alt: `real frames, their reconstructions, and the dream from step ${from} on` });
    image.onload = () => { crisp(image, 3); axis.replaceChildren(make("span", { textContent: `step ${from}` }), make("span", { textContent: "a frame every 4 steps" })); };
    const labels = make("div", { className: "labels", ariaHidden: "true" }, make("span", { className: "r", textContent: "real" }), make("span", { className: "c", textContent: "reconstruction" }), make("span", { className: "d", textContent: "dream" }));
    return make("div", { className: "strip" }, make("div", { className: "grid" }, labels, make("div", { className: "frames", tabIndex: 0 }, image), axis));
  }));
}

let listed = "";

export function showMedia(files) {
  $("media").hidden = !files.length;
  if (files.join() === listed) return;
  listed = files.join();
  $("media-view").replaceChildren(...files.map((file) => {
    const src = address("file", { file }), video = /\.(mp4|webm)$/.test(file);
    const view = video ? make("video", { src: `${src}#t=1`, controls: true, loop: true, muted: true, playsInline: true, preload: "metadata" }) : make("img", { src, alt: file, loading: "lazy" });
    return make("figure", { className: "card" }, view, make("figcaption", { className: "quiet small", textContent: file }));
  }));
}

const STATUS = { solved: "solved", plateau: "plateau", max_generations: "all generations used", training: "in training", waiting: "waiting" };

export function showTasks(place, tasks) {
  place.hidden = !tasks.length;
  while (place.children.length > tasks.length) place.lastElementChild.remove();
  tasks.forEach((task, i) => {
    const card = place.children[i] ?? place.appendChild(taskCard());
    const last = task.evaluations.at(-1), generation = last?.generation ?? 0;
    card.querySelector("h3").textContent = task.env;
    Object.assign(card.querySelector(".chip"), { textContent: STATUS[task.status] ?? task.status, className: `chip ${task.status}` });
    Object.assign(card.querySelector("progress"), { max: task.max_generations || 1, value: task.done ? task.max_generations || 1 : generation, ariaLabel: `generations of ${task.env}` });
    const [left, right] = card.querySelectorAll(".line span");
    left.textContent = task.max_generations ? `generation ${text(generation)} of at most ${text(task.max_generations)}` : "";
    right.textContent = task.final !== null ? `held-out ${text(task.final)}${task.final_std === null ? "" : ` ± ${text(task.final_std)}`}` : last ? `mean ${text(last.mean)}` : "";
    const points = (key) => task.evaluations.map((look) => [look.generation, look[key]]);
    const band = task.evaluations.filter((look) => look.ci95 !== null).map((look) => [look.generation, look.mean - look.ci95, look.mean + look.ci95]);
    const levels = task.threshold === null ? [] : [{ y: task.threshold, color: color("mark"), label: `threshold ${text(task.threshold)}` }];
    const lines = [{ values: points("dream"), color: color("dream"), width: 1.5 }, { values: points("mean"), color: color("real"), band }];
    const canvas = card.querySelector("canvas");
    canvas.hidden = card.querySelector(".legend").hidden = !task.evaluations.length;
    if (task.evaluations.length) curves(canvas, lines, { levels, unit: "generation" });
  });
}

function taskCard() {
  const canvas = make("canvas", { className: "chart" });
  canvas.setAttribute("role", "img");
  canvas.setAttribute("aria-label", "mean real return and dream return by generation, with the threshold");
  return make("article", { className: "card task" },
    make("div", { className: "title" }, make("h3"), make("span", { className: "chip" })), make("progress"),
    make("p", { className: "line" }, make("span"), make("span")), canvas,
    make("p", { className: "legend" }, make("span", { className: "key t-dream", textContent: "dream" }), make("span", { className: "key t-real", textContent: "real environment" })));
}

const TITLES = { open_loop: "Frames", reward: "Rewards", termination: "Termination", calibration: "Calibration", gap: "Returns", ranking: "Ranking of policies", temperature: "Temperature", training: "Over training", disagreement: "Disagreement", determinism: "Seeds" };

export function showFidelity(report) {
  $("fidelity").hidden = report === null;
  if (report === null) return;
  $("fidelity-about").textContent = report.episodes ? `Compared with ${text(report.episodes)} held-out real episodes.` : "";
  $("fidelity-page").hidden = report.page === null;
  if (report.page !== null) $("fidelity-page").href = address("report", { file: report.page });
  $("fidelity-view").replaceChildren(...Object.entries(report.verdicts).flatMap(([key, says]) => [make("dt", { textContent: TITLES[key] ?? key }), make("dd", { textContent: says })]));
}
