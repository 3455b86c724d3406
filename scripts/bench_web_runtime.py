"""Time of a frame in Chromium: the plain JavaScript of `wm export --web`, and onnxruntime-web (WASM, one thread).

    npm pack onnxruntime-web@1.30.0 && tar xzf onnxruntime-web-1.30.0.tgz
    python scripts/bench_web_runtime.py package/dist --model Dream-CarRacing-v0

A frame is a step of the dynamics and the decoder. Both run by turns in one page. Needs the extras `export` and `dev`.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from pathlib import Path
from statistics import median

from bench_play import serving
from playwright.sync_api import sync_playwright

from wm_agents.system.hardware import describe
from wm_agents.web.onnx_export import export_onnx
from wm_agents.web.web_export import export_web

RUNTIME = ("ort.wasm.min.mjs", "ort-wasm-simd-threaded.mjs", "ort-wasm-simd-threaded.wasm")
PAGE = """<!doctype html><link rel="icon" href="data:,"><script type="module">
import * as ort from "./ort.wasm.min.mjs";
import { Dream } from "./js/dream.js";
ort.env.wasm.numThreads = 1;
ort.env.wasm.wasmPaths = new URL("./", location.href).href;
const get = async (url) => (await fetch(url)).arrayBuffer();
const open = (name) => ort.InferenceSession.create(`./onnx/${name}.onnx`, { executionProviders: ["wasm"] });
const time = async (run, frames) => {
  const began = performance.now();
  for (let i = 0; i < frames; i++) await run();
  return (performance.now() - began) / frames;
};

window.bench = async (windows, frames) => {
  const { graphs } = await (await fetch("./onnx/dream.json")).json();
  const began = performance.now(), step = await open("step"), decode = await open("decode");
  const loaded = performance.now() - began;
  const dream = await Dream.load(new URL("./js/", location.href), get), { controls } = dream.facts;
  dream.reset(0);
  const act = controls.kind === "discrete" ? [controls.start] : controls.dims.map(({ rest }) => rest);
  const javascript = () => { dream.step(act); dream.decode(); };

  const given = {};
  for (const [name, { shape }] of Object.entries(graphs.step.inputs)) {
    const rows = shape.map((x) => (x === "B" ? 1 : x)), size = rows.reduce((a, b) => a * b, 1);
    given[name] = new ort.Tensor("float32", new Float32Array(size).fill(name === "temperature" ? 1 : 0), rows);
  }
  const latents = Object.keys(given).filter((name) => name.startsWith("latent_"));
  const wasm = async () => {
    given.noise.data.forEach((_, i, noise) => { noise[i] = 2 * Math.random() - 1; });
    const out = await step.run(given);
    for (const name of latents) given[name] = out[name.replace("latent_", "next_")];
    await decode.run(Object.fromEntries(Object.keys(graphs.decode.inputs).map((name) => [name, given[name]])));
  };
  await time(javascript, 20); await time(wasm, 20);
  const rows = [];
  for (let i = 0; i < windows; i++) rows.push([await time(javascript, frames), await time(wasm, frames)]);
  return { loaded, rows };
};
</script>"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dist", type=Path, help="the folder dist of the npm package onnxruntime-web")
    parser.add_argument("--model", default="Dream-CarRacing-v0")
    parser.add_argument("--windows", type=int, default=7)
    parser.add_argument("--frames", type=int, default=100)
    args = parser.parse_args()
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        sys.exit("Chromium is not installed")
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        export_web(args.model, folder / "js")
        export_onnx(args.model, folder / "onnx")
        (folder / "index.html").write_text(PAGE, encoding="utf-8")
        for name in RUNTIME:
            shutil.copyfile(args.dist / name, folder / name)
        size = sum((folder / name).stat().st_size for name in RUNTIME)
        command = ["-m", "http.server", "0", "--bind", "127.0.0.1", "--directory", place]
        with serving(command) as url, sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
            page = browser.new_page()
            page.goto(f"http://{url}/")
            page.wait_for_function("() => window.bench")
            found = page.evaluate(f"() => window.bench({args.windows}, {args.frames})")
            version = browser.version
            browser.close()
    script, wasm = (median(row[i] for row in found["rows"]) for i in (0, 1))
    print(f"{args.model}, Chromium {version}; {describe()}")
    print(f"plain JavaScript: {script:.1f} ms a frame ({1000 / script:.0f} frames/s)")
    print(f"onnxruntime-web: {wasm:.1f} ms a frame ({1000 / wasm:.0f} frames/s), {size / 1e6:.1f} MB to load,")
    print(f"  {found['loaded']:.0f} ms until its graphs are ready")


if __name__ == "__main__":
    main()
