"""`wm play`, `wm export` and `wm dashboard`: dreams and runs in the browser."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path

from wm_agents.project.schema import VisualizationSection

SHOW_DASHBOARD = "serve the dashboard of this run at 127.0.0.1:8766, or at another free port, during training"
EXTRAS = {"web": ("starlette", "uvicorn", "websockets"), "export": ("onnx", "onnxruntime")}
"""Packages of the extras that commands here need."""


def play(
    model: str,
    host: str = "127.0.0.1",
    port: int = 8765,
    policies: str | None = None,
    real: bool = True,
    max_sessions: int = 8,
    timeout_s: float = 600.0,
) -> None:
    """Play a dream in the browser, with the real environment beside it under the same actions.

    Keys, touch and gamepads steer. The page switches between you, the shipped policy, saved policies and random
    actions at any time, and shows where the dream leaves reality. Ctrl-C stops the server.

    Args:
        model: a model directory, or the name of a shipped model or dream.
        host: address to listen on. Any other than 127.0.0.1 requires the token in the URL that is printed.
        port: port to listen on; 0: any free port.
        policies: more policies to switch to, with commas between: policy_<kind>.safetensors files or model directories.
        real: show the real environment beside the dream.
        max_sessions: visitors at the same time.
        timeout_s: a session without input for this long is closed, in seconds.
    """
    need("web", "wm play")
    import torch

    from wm_agents.web.guard import make_token
    from wm_agents.web.playable import load_playable
    from wm_agents.web.server import Server
    from wm_agents.web.serving import serve

    if max_sessions < 1 or not timeout_s > 0:
        raise ValueError(f"need max_sessions >= 1 and timeout_s > 0, got {max_sessions} and {timeout_s}")
    torch.set_num_threads(1)  # Steps of one row are too short for more (wm_envs.threads).
    playable = load_playable(model, policies.split(",") if policies else (), real=real)
    if playable.no_real and real:
        print(f"without the real environment: {playable.no_real}")
    token = make_token(host)
    app = Server(playable, max_sessions, timeout_s).app(host, token)
    serve(app, host, port, token, f"{playable.name} is open at")


def export(model: str, out: str, web: bool = False) -> None:
    """Export a dream: as ONNX graphs, or as a web page that needs no server.

    ONNX graphs are checked against PyTorch over 100 steps. The page runs the model in plain JavaScript in the visitor's
    browser; any web server can serve the folder, such as `python -m http.server -d OUT`.

    Args:
        model: a model directory, or the name of a shipped model or dream.
        out: folder to write; it must be new, empty, or an earlier export.
        web: write a web page instead of ONNX graphs.
    """
    if web:
        from wm_agents.web.web_export import export_web

        skipped = dict.fromkeys(export_web(model, Path(out)), "the page has no implementation")
        size = sum(file.stat().st_size for file in Path(out).iterdir())
        print(f"{out}: {size / 1e6:.1f} MB; play it with `python -m http.server -d {out}`")
    else:
        need("export", "wm export")
        from wm_agents.web.onnx_export import export_onnx

        made = export_onnx(model, Path(out))
        skipped = made["skipped"]
        print(f"{out}: {', '.join(made['files'])}")
        for name, difference in made["difference"].items():
            print(f"  {name}: differs from PyTorch by at most {difference:.1e} over 100 steps")
    for name, why in skipped.items():
        print(f"  {name} is not exported: {why}")


def dashboard(
    runs: str = "runs",
    host: str = "127.0.0.1",
    port: int = 8766,
    refresh_ms: int = 1000,
    history_max_points: int = 2000,
    open_browser: bool = False,
) -> None:
    """Show the runs in a folder in the browser: curves as they grow, live frames, dreams beside reality, videos, disk.

    It reads files only, so finished runs and runs of other machines are shown as well. Ctrl-C stops the server.
    `--dashboard` of improve, train and curriculum shows one run while it is trained.

    Args:
        runs: folder with run folders, or a run folder.
        host: address to listen on. Any other than 127.0.0.1 requires the token in the URL that is printed.
        port: port to listen on; 0: any free port.
        refresh_ms: milliseconds between two updates, at least 100.
        history_max_points: points per curve, at most.
        open_browser: open the page in the default browser.
    """
    need("web", "wm dashboard")
    from wm_agents.web.dashboard import View, dashboard_app
    from wm_agents.web.guard import make_token
    from wm_agents.web.serving import serve

    token = make_token(host)
    app = dashboard_app(Path(runs), View(refresh_ms, history_max_points), host, token)
    serve(app, host, port, token, f"the dashboard of {runs} is open at", open_browser)


@contextmanager
def dashboard_of(run: str | Path, given: VisualizationSection) -> Iterator[None]:
    """Serve the dashboard of a run folder within the block, if `given` asks for it; its URL is printed to stderr."""
    if not given.dashboard:
        yield
        return
    need("web", "--dashboard")
    from wm_agents.web.dashboard import View, dashboard_app
    from wm_agents.web.guard import make_token
    from wm_agents.web.serving import serving

    folder, token = Path(run), make_token(given.host)
    folder.mkdir(parents=True, exist_ok=True)
    app = dashboard_app(folder, View(given.refresh_ms, given.history_max_points), given.host, token)

    def say(url: str) -> None:
        print(f"the dashboard is open at {url} until training ends; later: wm dashboard {run}", file=sys.stderr)

    with serving(app, given.host, given.port, token, say, given.open_browser):
        yield


def need(extra: str, command: str) -> None:
    """Check that the packages of an extra are installed.

    Raises:
        ImportError: one is missing; the message has the pip command.
    """
    for name in EXTRAS[extra]:
        try:
            import_module(name)
        except ImportError as error:
            raise ImportError(
                f"{command} needs {', '.join(EXTRAS[extra])}: pip install 'dreams-as-envs[{extra}]', or in a checkout "
                f"pip install '.[{extra}]'"
            ) from error
