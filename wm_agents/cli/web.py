"""`wm play`, `wm export` and `wm dashboard`: dreams and runs in the browser."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

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
    from wm_agents.web.server import Server, serve

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


def dashboard(runs: str = "runs", host: str = "127.0.0.1", port: int = 8766) -> None:
    """Show the runs in a folder in the browser: curves as they grow, returns with thresholds, videos, disk space.

    It reads files only, so finished runs and runs of other machines are shown as well. Ctrl-C stops the server.

    Args:
        runs: folder with run folders, or a run folder.
        host: address to listen on. Any other than 127.0.0.1 requires the token in the URL that is printed.
        port: port to listen on; 0: any free port.
    """
    need("web", "wm dashboard")
    from wm_agents.web.dashboard import dashboard_app
    from wm_agents.web.guard import make_token
    from wm_agents.web.server import serve

    token = make_token(host)
    serve(dashboard_app(Path(runs), host, token), host, port, token, f"the dashboard of {runs} is open at")


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
