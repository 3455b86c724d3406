"""`wm dashboard` as a web application: runs and their metrics, read from files alone."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from anyio import to_thread
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from wm_agents.web.guard import Guard
from wm_agents.web.runs import Runs

STATIC = Path(__file__).parent / "static"


def dashboard_app(root: Path, host: str = "127.0.0.1", token: str = "") -> Guard:
    """The application that shows the runs below `root`.

    Raises:
        FileNotFoundError: there is no such folder.
    """
    runs = Runs(root)

    def metrics(request: Request) -> Any:
        given = request.query_params.get("from", "0")
        rows = runs.metrics(request.query_params.get("file", ""), int(given) if given.isdecimal() else 0)
        return rows._asdict()

    def shown(request: Request) -> Response:
        path, kind = runs.shown(request.query_params.get("file", ""))
        return FileResponse(path, media_type=kind)

    routes = [
        Route("/", lambda request: FileResponse(STATIC / "dashboard.html")),
        Route("/runs", _answer(lambda request: runs.list())),
        Route("/run", _answer(lambda request: runs.run(request.query_params.get("name", "")))),
        Route("/metrics", _answer(metrics)),
        Route("/file", _answer(shown)),
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
        return found if isinstance(found, Response) else JSONResponse(found)

    return endpoint
