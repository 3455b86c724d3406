"""Serves an application on a port: in the foreground, or beside other work of this process."""

from __future__ import annotations

import logging
import socket
import webbrowser
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from threading import Thread
from typing import Any

import uvicorn

MAX_MESSAGE = 4096
"""Bytes of a client's message; longer ones close the connection."""


def serve(app: Any, host: str, port: int, token: str, what: str, open_browser: bool = False) -> None:
    """Print the URL of `app` and serve it until Ctrl-C.

    Raises:
        OSError: the port is in use, or the address is not one of this machine.
    """
    with listen(host, port) as listener:
        url = url_of(listener, host, token)
        print(f"{what} {url}", flush=True)
        if open_browser:
            webbrowser.open(url)
        with suppress(KeyboardInterrupt):  # Uvicorn raises it again after it has closed all connections.
            _server(app).run(sockets=[listener])


@contextmanager
def serving(
    app: Any, host: str, port: int, token: str, say: Callable[[str], object], open_browser: bool = False
) -> Iterator[None]:
    """Serve `app` on a thread within the block; `say` gets its URL.

    Another free port is taken if `port` is in use, because that must not stop the work of the block.
    """
    try:
        listener = listen(host, port)
    except OSError:
        listener = listen(host, 0)
    with listener:
        url = url_of(listener, host, token)
        say(url)
        if open_browser:
            webbrowser.open(url)
        server = _server(app)
        thread = Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        try:
            yield
        finally:
            server.should_exit = True
            thread.join(timeout=5)


def listen(host: str, port: int) -> socket.socket:
    """A listening socket.

    Raises:
        OSError: the port is in use, or the address is not one of this machine.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(128)  # Visitors may come as soon as the URL is printed.
    except (OSError, OverflowError) as error:
        listener.close()
        raise OSError(f"cannot listen on {host}:{port}: {error}; choose another --port or --host") from error
    return listener


def url_of(listener: socket.socket, host: str, token: str) -> str:
    """The address that visitors open."""
    name = f"[{host}]" if ":" in host else host
    query = f"?token={token}" if token else ""
    return f"http://{name}:{listener.getsockname()[1]}/{query}"


def _server(app: Any) -> uvicorn.Server:
    limits: Any = {"ws_max_size": 2 * MAX_MESSAGE, "ws_max_queue": 8, "timeout_graceful_shutdown": 2}
    config = uvicorn.Config(app, log_level="warning", ws="websockets-sansio", **limits)
    logging.getLogger("uvicorn.error").addFilter(_shorten)
    return uvicorn.Server(config)


def _shorten(record: logging.LogRecord) -> bool:
    """Log one line, without a traceback, for a message that is not UTF-8."""
    if record.exc_info and isinstance(record.exc_info[1], UnicodeDecodeError):
        record.exc_info = None
    return True
