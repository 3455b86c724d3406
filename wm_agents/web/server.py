"""`wm play` as a web application: one page, and a session for each websocket."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

from anyio import CancelScope, CapacityLimiter, create_task_group, fail_after, move_on_after, to_thread
from starlette.applications import Starlette
from starlette.responses import FileResponse
from starlette.routing import Mount, Route, WebSocketRoute
from starlette.staticfiles import StaticFiles
from starlette.websockets import WebSocket, WebSocketDisconnect

from wm_agents.web.guard import Guard, RateLimit
from wm_agents.web.playable import Playable
from wm_agents.web.serving import MAX_MESSAGE
from wm_agents.web.session import BadMessage, Reply, Session

T = TypeVar("T")
STATIC = Path(__file__).parent / "static"
RATE, BURST = 240.0, 480.0
"""Messages per second of a client, and how many it may send at once."""
AHEAD = 3
"""Steps that are sent before the client has confirmed the first of them: a slow client gets fewer, not older ones."""
SEND_S = 20.0
"""A client that takes no message for so long is disconnected."""
PAUSE_S = 0.1
"""A game that is paused or over is looked at so often."""


class Server:
    """The sessions of one dream.

    Args:
        max_sessions: visitors at once; others are asked to come back later.
        timeout_s: a session without input for so long is closed.
    """

    def __init__(self, playable: Playable, max_sessions: int = 8, timeout_s: float = 600.0) -> None:
        self.playable, self.max_sessions, self.timeout_s = playable, max_sessions, timeout_s
        self.sessions = 0
        self._workers = CapacityLimiter(os.cpu_count() or 1)

    def app(self, host: str = "127.0.0.1", token: str = "") -> Guard:
        """The application, with what protects it."""
        routes = [
            Route("/", lambda request: FileResponse(STATIC / "play.html")),
            WebSocketRoute("/play", self.play),
            Mount("/static", StaticFiles(directory=STATIC)),
        ]
        return Guard(Starlette(routes=routes), host, token)

    async def play(self, ws: WebSocket) -> None:
        """One visitor, from the first message to the last."""
        await ws.accept()
        if self.sessions >= self.max_sessions:
            text = f"all {self.max_sessions} places are taken; try again in a few minutes"
            await ws.send_bytes(Reply({"kind": "closed", "text": text}).packed())
            await ws.close(1013)
            return
        self.sessions += 1
        try:
            await _Visit(self, ws).run()
        finally:
            self.sessions -= 1

    async def work(self, task: Callable[[], T]) -> T:
        """Run a task of a game on a worker thread; a cancelled caller waits until it is done."""
        return await to_thread.run_sync(task, limiter=self._workers)


def next_due(due: float, now: float, period: float, replies: list[Reply]) -> float:
    """When the next step is due after `replies`, in seconds like `due` and `now`.

    A command does not change the time. The steps after a late step are not faster to catch up. A step that was asked
    for before its time does not delay the next one.
    """
    if any(reply.about["kind"] == "step" for reply in replies):
        return min(max(due + period, now), now + period)
    if replies:
        return due
    return now + PAUSE_S


class _Visit:
    """The connection of one session: a reader, and a loop that steps the game and sends."""

    def __init__(self, server: Server, ws: WebSocket) -> None:
        self.server, self.ws = server, ws
        self._wakeup = asyncio.Event()
        self._unseen = 0

    async def run(self) -> None:
        self.session = await self.server.work(lambda: Session(self.server.playable))
        try:
            async with create_task_group() as group:
                for part in (self._read, self._play):
                    group.start_soon(self._until_gone, part, group.cancel_scope)
        finally:
            with CancelScope(shield=True):
                await self.server.work(self.session.close)

    async def _until_gone(self, part: Callable[[], Awaitable[None]], both: CancelScope) -> None:
        """Run the reader or the player; the end of one, or of the connection, stops both."""
        with suppress(WebSocketDisconnect):
            await part()
        both.cancel()

    async def _read(self) -> None:
        limit = RateLimit(RATE, BURST)
        while True:
            message = await self.ws.receive()
            if message["type"] == "websocket.disconnect":
                return
            text = message.get("text")
            if text is None or len(text) > MAX_MESSAGE:
                await self._close(1009, f"messages are text of at most {MAX_MESSAGE} characters")
                return
            if text == "seen":
                self._unseen = max(0, self._unseen - 1)
            else:
                try:
                    self.session.post(text)
                except BadMessage as error:
                    await self._send(Reply({"kind": "error", "text": str(error)}))
            self._wakeup.set()
            if delay := limit.delay():
                await asyncio.sleep(delay)

    async def _play(self) -> None:
        await self._send(self.session.greeting())
        await self._send_all(await self.server.work(self.session.open))
        due = time.monotonic()
        while self.session.idle_s < self.server.timeout_s:
            if self._unseen >= AHEAD and not self.session.waits:
                await self._rest(1.0)
                continue
            wait = due - time.monotonic()
            if wait > 0 and not self.session.waits:
                await self._rest(wait)
                continue
            replies = await self.server.work(self.session.advance)
            await self._send_all(replies)
            due = next_due(due, time.monotonic(), self.session.period, replies)
        await self._close(1000, f"closed after {self.server.timeout_s:.0f} s without input; reload to play again")

    async def _rest(self, seconds: float) -> None:
        """Wait, or until the client has sent something."""
        self._wakeup.clear()
        with move_on_after(seconds):
            await self._wakeup.wait()

    async def _send_all(self, replies: list[Reply]) -> None:
        for reply in replies:
            self._unseen += reply.about["kind"] == "step"
            await self._send(reply)

    async def _send(self, reply: Reply) -> None:
        try:
            with fail_after(SEND_S):
                await self.ws.send_bytes(reply.packed())
        except (TimeoutError, RuntimeError) as error:  # Starlette raises RuntimeError after a close.
            raise WebSocketDisconnect(1001) from error

    async def _close(self, code: int, text: str) -> None:
        await self._send(Reply({"kind": "closed", "text": text}))
        with CancelScope(shield=True):  # The other part notices, and cancels this one.
            await self.ws.close(code)
