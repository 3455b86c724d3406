// Keys, on-screen controls and gamepads to actions, for every action space.

const KEY_NAMES = { ArrowLeft: "←", ArrowRight: "→", ArrowUp: "↑", ArrowDown: "↓", Space: "space" };
export const keyName = (code) => KEY_NAMES[code] || code.replace(/^(Key|Digit)/, "");
const PULL_S = 0.18; // Seconds from rest to full deflection of a dimension steered by keys.

function element(tag, properties = {}, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}

export class Controls {
  // `spec`: see wm_agents/web/controls.py. `act(action)` is called when the action changes; `touch()` when a person steers.
  constructor(spec, pad, { act, touch }) {
    Object.assign(this, { spec, pad, act, touch });
    this.held = new Set();
    this.pressed = null; // A discrete action held on the screen.
    this.stick = null; // [x, y] in [-1, 1] while the stick is dragged.
    this.time = performance.now();
    if (spec.kind === "continuous") { this.values = spec.dims.map((dim) => dim.rest); this.bases = [...this.values]; this.buildSticks(); }
    else if (spec.kind === "discrete") { this.action = spec.rest ?? 0; this.buildButtons(); }
    else { this.parts = spec.parts.map((part) => part.start); this.buildParts(); }
    addEventListener("keydown", (event) => this.key(event, true));
    addEventListener("keyup", (event) => this.key(event, false));
    addEventListener("blur", () => this.held.clear());
    // Arrow keys steer again once a slider has been dragged; who reaches it by the Tab key keeps it.
    addEventListener("pointerup", (event) => { if (event.target.type === "range") event.target.blur(); });
  }

  get codes() {
    if (this.spec.kind === "discrete") return this.spec.keys;
    return Object.assign({}, ...(this.spec.dims ?? this.spec.parts).map(({ keys }) => keys));
  }

  key(event, down) {
    if (!(event.code in this.codes) || event.ctrlKey || event.metaKey || event.altKey) return;
    if (/^(INPUT|SELECT|TEXTAREA)$/.test(event.target.tagName)) return;
    if (event.code === "Space" && event.target.tagName === "BUTTON") return;
    event.preventDefault();
    if (down) {
      if (this.spec.kind === "multiple" && !event.repeat) this.turn(event.code);
      this.held.add(event.code); this.touch();
    } else this.held.delete(event.code);
    this.update();
  }

  help() {
    if (this.spec.kind === "discrete") {
      const named = Object.entries(this.spec.keys).filter(([code]) => !code.startsWith("Digit"));
      const shown = named.length ? named : Object.entries(this.spec.keys);
      return shown.map(([code, i]) => `${keyName(code)} ${this.spec.names[i]}`).join(" · ");
    }
    return (this.spec.dims ?? this.spec.parts).filter(({ keys }) => Object.keys(keys).length)
      .map(({ name, keys }) => `${Object.keys(keys).map(keyName).join(" ")} ${name}`).join(" · ");
  }

  buildButtons() {
    const keys = {};
    for (const [code, i] of Object.entries(this.spec.keys)) if (!keys[i] || keys[i].length > 1 || !code.startsWith("Digit")) keys[i] = keyName(code);
    this.buttons = this.spec.names.map((name, i) => {
      const button = element("button", { type: "button" }, name, element("kbd", { textContent: keys[i] || "" }));
      const hold = (on) => (event) => {
        if (on) { event.preventDefault(); button.setPointerCapture?.(event.pointerId); this.touch(); }
        this.pressed = on ? i : null;
        this.update();
      };
      button.addEventListener("pointerdown", hold(true));
      for (const end of ["pointerup", "pointercancel", "lostpointercapture"]) button.addEventListener(end, hold(false));
      button.addEventListener("keydown", (event) => { if (event.code === "Enter" && !event.repeat) { this.touch(); this.pressed = i; this.update(); } });
      button.addEventListener("keyup", (event) => { if (event.code === "Enter") { this.pressed = null; this.update(); } });
      return button;
    });
    // From left to right as they move, what needs no key last.
    const place = (i) => ["ArrowLeft", "ArrowUp", "ArrowDown", "ArrowRight", "Space"].findIndex((code) => this.spec.keys[code] === i);
    const order = this.buttons.map((_, i) => i).sort((a, b) => (place(a) < 0 ? 9 : place(a)) - (place(b) < 0 ? 9 : place(b)));
    this.pad.replaceChildren(element("div", { className: "buttons" }, ...order.map((i) => this.buttons[i])));
  }

  // A row of buttons for each part of the action; what is chosen stays.
  buildParts() {
    this.rows = this.spec.parts.map(({ name, num, start, keys }, p) => {
      const buttons = Array.from({ length: num }, (_, i) => {
        const button = element("button", { type: "button", textContent: start + i });
        button.setAttribute("aria-label", `${name}: ${start + i}`);
        button.addEventListener("click", () => { this.parts[p] = start + i; this.touch(); this.update(); });
        return button;
      });
      const hint = element("kbd", { textContent: Object.keys(keys).map(keyName).join(" ") });
      return element("div", { className: "part" }, element("span", {}, name, hint), element("div", { className: "segments" }, ...buttons));
    });
    this.pad.replaceChildren(...this.rows);
    this.markParts(this.parts);
  }

  // A key chooses the option before or after; one with a single key starts over after the last option.
  turn(code) {
    this.spec.parts.forEach(({ num, start, keys }, p) => {
      if (!(code in keys)) return;
      const next = this.parts[p] - start + keys[code], around = Object.keys(keys).length === 1;
      this.parts[p] = start + (around ? next % num : Math.max(0, Math.min(num - 1, next)));
    });
  }

  markParts(act) {
    this.rows.forEach((row, p) => row.querySelectorAll("button").forEach((button, i) => button.setAttribute("aria-pressed", act[p] - this.spec.parts[p].start === i)));
  }

  // The first two-sided dimension and the pedals share a stick, and have gauges; other dimensions have sliders.
  buildSticks() {
    const dims = this.spec.dims, side = dims.findIndex((dim) => dim.low < 0);
    const pedals = dims.map((dim, i) => [dim, i]).filter(([dim, i]) => i !== side && dim.low >= 0).map(([, i]) => i);
    const second = dims.findIndex((dim, i) => i !== side && dim.low < 0);
    this.axes = { side, up: pedals[0] ?? -1, down: pedals[1] ?? -1, second: pedals.length ? -1 : second };
    const say = (where, i, text) => (i >= 0 ? [element("span", { className: where, textContent: text ?? dims[i].name })] : []);
    const knob = element("div", { className: "knob" });
    const flat = this.axes.up < 0 && this.axes.second < 0;
    const stick = element("div", { className: flat ? "stick flat" : "stick" }, knob,
      ...say("w", side, "◂"), ...say("e", side, `${dims[side]?.name} ▸`), ...say("n", this.axes.up), ...say("s", this.axes.down), ...say("n", this.axes.second));
    const move = (event) => {
      const at = stick.getBoundingClientRect(), clip = (x) => Math.max(-1, Math.min(1, x));
      this.stick = [clip((2 * (event.clientX - at.left)) / at.width - 1), clip(1 - (2 * (event.clientY - at.top)) / at.height)];
      this.touch(); this.update();
    };
    stick.addEventListener("pointerdown", (event) => { stick.setPointerCapture(event.pointerId); move(event); });
    stick.addEventListener("pointermove", (event) => { if (this.stick) move(event); });
    for (const end of ["pointerup", "pointercancel"]) stick.addEventListener(end, () => { this.stick = null; this.update(); });
    const svg = (tag, attributes) => {
      const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
      for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
      return made;
    };
    this.gauges = dims.map(() => svg("rect", { x: 0, y: 0, width: 0, height: 8 }));
    this.sliders = {};
    const rows = dims.map((dim, i) => {
      const gauge = svg("svg", { viewBox: "0 0 100 8", preserveAspectRatio: "none" });
      gauge.append(this.gauges[i]);
      if (Object.values(this.axes).includes(i)) return element("div", {}, element("span", { textContent: dim.name }), gauge);
      const slider = element("input", { type: "range", min: dim.low, max: dim.high, step: (dim.high - dim.low) / 200, value: dim.rest, ariaLabel: dim.name });
      slider.oninput = () => { this.bases[i] = +slider.value; this.touch(); this.update(); };
      this.sliders[i] = slider;
      return element("label", {}, element("span", { textContent: dim.name }), slider);
    });
    this.knob = knob;
    this.pad.replaceChildren(stick, element("div", { className: "gauges" }, ...rows));
  }

  gamepad() {
    for (const pad of navigator.getGamepads?.() ?? []) {
      if (!pad) continue;
      const x = Math.abs(pad.axes[0] ?? 0) > 0.12 ? pad.axes[0] : 0, y = Math.abs(pad.axes[1] ?? 0) > 0.12 ? -pad.axes[1] : 0;
      const on = (i) => pad.buttons[i]?.value ?? 0;
      const dpad = [on(15) - on(14), on(12) - on(13)];
      const used = x || y || on(0) || on(6) || on(7) || dpad[0] || dpad[1];
      if (used || this.padUsed) { this.padUsed = Boolean(used); return { x: dpad[0] || x, y: dpad[1] || y, fire: on(0), gas: on(7), brake: on(6), used }; }
    }
    return null;
  }

  // Called for every frame: keys pull continuous dimensions gradually, and gamepads are polled.
  tick() {
    const now = performance.now(), passed = Math.min(0.1, (now - this.time) / 1000);
    this.time = now;
    this.pads = this.gamepad();
    if (this.pads?.used) this.touch();
    this.update(passed);
  }

  update(passed = 0) {
    const next = this.spec.kind === "continuous" ? this.continuous(passed) : this.spec.kind === "discrete" ? this.discrete() : this.multiple();
    const text = JSON.stringify(next);
    if (text !== this.sent) { this.sent = text; this.act(next); }
  }

  discrete() {
    const { keys, rest, start } = this.spec, last = [...this.held].pop();
    const chosen = this.pressed ?? (last === undefined ? undefined : keys[last]);
    this.action = chosen ?? keys[this.padCode()] ?? rest ?? this.action;
    this.mark(this.action);
    return this.action + start;
  }

  // The code of the key that a gamepad stands for.
  padCode() {
    if (!this.pads) return "";
    const { x, y, fire } = this.pads;
    if (fire) return "Space";
    if (Math.abs(x) > Math.abs(y)) return x < -0.4 ? "ArrowLeft" : x > 0.4 ? "ArrowRight" : "";
    return y > 0.4 ? "ArrowUp" : y < -0.4 ? "ArrowDown" : "";
  }

  multiple() {
    const code = this.padCode();
    if (code !== this.padBefore) this.turn(code);
    this.padBefore = code;
    this.markParts(this.parts);
    return this.parts;
  }

  mark(action) { this.buttons.forEach((button, i) => button.classList.toggle("on", i === action)); }

  continuous(passed) {
    const { dims } = this.spec, { side, up, down, second } = this.axes;
    dims.forEach((dim, i) => {
      const pull = Object.entries(dim.keys).reduce((sum, [code, sign]) => sum + (this.held.has(code) ? sign : 0), 0);
      const base = this.bases[i], target = base + (pull > 0 ? pull * (dim.high - base) : pull * (base - dim.low));
      const most = ((dim.high - dim.low) * passed) / (2 * PULL_S);
      this.values[i] += Math.max(-most, Math.min(most, target - this.values[i]));
      const set = (unit) => { this.values[i] = unit > 0 ? dim.rest + unit * (dim.high - dim.rest) : dim.rest + unit * (dim.rest - dim.low); };
      const from = this.stick ? { x: this.stick[0], y: this.stick[1] } : this.pads;
      if (!from) return;
      if (i === side) set(from.x);
      else if (i === up) set(Math.max(0, this.pads && !this.stick ? Math.max(this.pads.gas, from.y) : from.y));
      else if (i === down) set(Math.max(0, this.pads && !this.stick ? Math.max(this.pads.brake, -from.y) : -from.y));
      else if (i === second) set(from.y);
    });
    const shown = this.values.map((x) => Math.round(1000 * x) / 1000);
    this.gauge(shown);
    return shown;
  }

  gauge(values) {
    this.spec.dims.forEach((dim, i) => {
      const unit = (x) => (100 * (x - dim.low)) / (dim.high - dim.low), a = unit(dim.rest), b = unit(values[i]);
      if (this.sliders[i] && this.sliders[i] !== document.activeElement) this.sliders[i].value = values[i];
      this.gauges[i].setAttribute("x", Math.min(a, b)); this.gauges[i].setAttribute("width", Math.max(1, Math.abs(a - b)));
    });
    const { side, up, down, second } = this.axes, unit = (i) => (i < 0 ? 0 : (2 * (values[i] - this.spec.dims[i].low)) / (this.spec.dims[i].high - this.spec.dims[i].low) - 1);
    const press = (i) => (i < 0 ? 0 : (unit(i) + 1) / 2);
    const x = side < 0 ? 0 : unit(side), y = second >= 0 ? unit(second) : press(up) - press(down);
    this.knob.style.transform = `translate(${x * 40 * (this.knob.parentElement.clientWidth / 100)}px, ${-y * 50}px)`;
  }

  // Shows what another pilot does.
  show(act) {
    if (this.spec.kind === "continuous") this.gauge(act);
    else if (this.spec.kind === "discrete") this.mark(act[0] - this.spec.start);
    else this.markParts(act);
  }
}
