"""`wm dashboard` as a web application: runs and their metrics, read from files alone."""

from __future__ import annotations

import zlib
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, NamedTuple

from anyio import to_thread
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from wm_agents.web.guard import Guard
from wm_agents.web.run_facts import about, facts_of
from wm_agents.web.runs import Runs

STATIC = Path(__file__).parent / "static"
REPORT_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; frame-ancestors 'none'; sandbox"
"""Content-Security-Policy of reports in run folders: no script, nothing from elsewhere, an origin of their own."""


class View(NamedTuple):
    """Settings of the page."""

    refresh_ms: int = 1000
    """Milliseconds between two updates."""
    points: int = 2000
    """Points per curve, at most."""


DEFAULT = View()


def dashboard_app(root: Path, view: View = DEFAULT, host: str = "127.0.0.1", token: str = "") -> Guard:
    """The application that shows the runs below `root`.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: `view` is out of range.
    """
    if view.refresh_ms < 100 or view.points < 2:
        raise ValueError(f"need refresh_ms >= 100 and history_max_points >= 2, got {view.refresh_ms} and {view.points}")
    runs = Runs(root)

    def metrics(request: Request) -> Any:
        given = request.query_params.get("from", "0")
        rows = runs.metrics(request.query_params.get("file", ""), int(given) if given.isdecimal() else 0)
        return rows._asdict()

    def shown(request: Request) -> Response:
        path, kind = runs.shown(request.query_params.get("file", ""))
        if kind.startswith("video/"):
            return FileResponse(path, media_type=kind)  # It answers requests for parts of the file.
        data = path.read_bytes()  # At once, because live frames are replaced at any time.
        return Response(data, media_type=kind, headers={"etag": f'"{zlib.crc32(data):08x}"'})

    def report(request: Request) -> Response:
        path = runs.report(request.query_params.get("file", ""))
        return FileResponse(path, media_type="text/html", headers={"content-security-policy": REPORT_POLICY})

    routes = [
        Route("/", lambda request: FileResponse(STATIC / "dashboard.html")),
        Route("/view", lambda request: JSONResponse(view._asdict())),
        Route("/runs", _answer(lambda request: [about(runs, folder) for folder in runs.newest()])),
        Route("/run", _answer(lambda request: facts_of(runs, request.query_params.get("name", "")))),
        Route("/metrics", _answer(metrics)),
        Route("/file", _answer(shown)),
        Route("/report", _answer(report)),
        Mount("/static", StaticFiles(directory=STATIC)),
    ]
    return Guard(Starlette(routes=routes), host, token)


def _answer(find: Callable[[Request], Any]) -> Callable[[Request], Awaitable[Response]]:
    """An endpoint that reads files on a worker thread; 404 with one line for what does not exist."""

    async def endpoint(request: Request) -> Response:
        try:
            found = await to_thread.run_sync(find, request)
        except OSError as error:
            return JSONResponse({"error": str(error)}, 404)
        if isinstance(found, Response):
            return found
        return JSONResponse(found)

    return endpoint
