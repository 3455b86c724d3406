"""One visitor: commands that a client sends, the clock of the game, and recordings. No HTTP here."""

from __future__ import annotations

import json
import struct
import time
from collections import deque
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from wm_agents.web.controls import read_action
from wm_agents.web.game import Game, Scene
from wm_agents.web.playable import PERSON, Playable
from wm_agents.web.recording import FORMATS, Recording

Array = NDArray[Any]
MAX_SEED = 2**31 - 1
SPEEDS = (0.1, 8.0)
TEMPERATURES = (0.05, 5.0)
MAX_HORIZON = 100_000
MAX_PENDING = 32
"""Commands that wait for the next step; later ones are dropped."""
LATENT_SHOWN = 512
"""Features that are sent with a step, at most."""
STARTS = ("begin", "anywhere")


class Reply(NamedTuple):
    """What is sent to the client: JSON, or JSON followed by bytes."""

    about: dict[str, Any]
    parts: tuple[bytes, ...] = ()

    def packed(self) -> bytes:
        """Length of the JSON (uint32, little endian), the JSON, then the parts, whose lengths are in `sizes`."""
        head = json.dumps({**self.about, "sizes": [len(part) for part in self.parts]}).encode()
        return struct.pack("<I", len(head)) + head + b"".join(self.parts)


class BadMessage(ValueError):
    """A message of the client that is not understood."""


class Session:
    """A game with its settings, its clock and its recording.

    `post` may be called at any time, from another thread than `advance`, which applies what was posted.
    """

    def __init__(self, playable: Playable, seed: int = 0, clock: Callable[[], float] = time.monotonic) -> None:
        self.playable, self.clock = playable, clock
        self.game = Game(playable)
        self.seed = seed
        self.paused = False
        self.speed = 1.0
        self.recording: Recording | None = None
        self.last_input = clock()
        self._pending: deque[Callable[[], list[Reply]]] = deque()
        self._commands: dict[str, Callable[[Any], Callable[[], list[Reply]]]] = {
            "pilot": self._fly,
            "pause": self._pause,
            "step": self._step,
            "restart": self._restart,
            "temperature": self._heat,
            "speed": self._pace,
            "horizon": self._limit,
            "start": self._start,
            "awake": self._wake,
            "record": self._record,
        }

    def greeting(self) -> Reply:
        """The first message to a client."""
        return Reply({"kind": "hello", "stage": self.playable.facts(), "seed": self.seed, "formats": list(FORMATS)})

    @property
    def period(self) -> float:
        """Seconds between steps."""
        return 1 / (self.playable.fps * self.speed)

    @property
    def idle_s(self) -> float:
        """Seconds since the visitor did anything."""
        return self.clock() - self.last_input

    @property
    def waits(self) -> bool:
        """Whether there are commands to apply."""
        return bool(self._pending)

    def post(self, text: str) -> None:
        """Take a message of the client: a JSON object with one command, such as {"temperature": 1.2}.

        Raises:
            BadMessage: it is not one.
        """
        try:
            message = json.loads(text)
        except (ValueError, RecursionError):
            raise BadMessage(f"messages are JSON objects with one command, got {text[:40]!r}") from None
        if not isinstance(message, dict) or len(message) != 1:
            raise BadMessage(f"messages are JSON objects with one command, got {text[:40]!r}")
        ((name, value),) = message.items()
        if name == "act":
            try:
                self.game.person = read_action(self.playable.model.act_space, value)
            except (ValueError, TypeError, OverflowError) as error:
                raise BadMessage(str(error)) from None
        elif name in self._commands:
            command = self._commands[name](value)
            if len(self._pending) >= MAX_PENDING:
                raise BadMessage(f"{MAX_PENDING} commands are waiting; wait until they are applied")
            self._pending.append(command)
        else:
            raise BadMessage(f"unknown command {name[:40]!r}; expected act or one of {', '.join(self._commands)}")
        self.last_input = self.clock()

    def advance(self) -> list[Reply]:
        """Apply the oldest waiting command; without one, take the next step unless paused or over."""
        if self._pending:
            try:
                return self._pending.popleft()()
            except ValueError as error:
                return [Reply({"kind": "error", "text": str(error)})]
        if self.paused:
            return []
        return self._take_step()

    def open(self) -> list[Reply]:
        """Start the first episode."""
        return self._begin(self.seed)

    def close(self) -> None:
        """Free what the session holds."""
        self.game.close()

    def settings(self) -> Reply:
        """What the controls of the page show."""
        game = self.game
        return Reply(
            {
                "kind": "settings",
                "pilot": game.pilot,
                "paused": self.paused,
                "seed": self.seed,
                "temperature": game.temperature,
                "speed": self.speed,
                "horizon": game.horizon,
                "start": game.start,
                "awake": game.awake,
                "recording": self.recording is not None,
            }
        )

    def _take_step(self) -> list[Reply]:
        if self.scene.over:
            return []
        return self._shown(self.game.step())

    def _shown(self, scene: Scene) -> list[Reply]:
        self.scene = scene
        reply = _show(scene)
        if self.recording is not None and not self.recording.add(scene):
            return [reply, Reply({"kind": "error", "text": "the recording is full; stop it to save it"})]
        return [reply]

    def _begin(self, seed: int) -> list[Reply]:
        self.seed = seed
        return [*self._shown(self.game.restart(seed)), self.settings()]

    def _restart(self, value: Any) -> Callable[[], list[Reply]]:
        if value is None:
            return lambda: self._begin(min(self.seed + 1, MAX_SEED))
        seed = _whole("restart (the seed)", value, 0, MAX_SEED)
        return lambda: self._begin(seed)

    def _fly(self, value: Any) -> Callable[[], list[Reply]]:
        if not isinstance(value, str) or value not in (PERSON, *self.playable.pilots):
            raise BadMessage(f"pilot must be one of {[PERSON, *self.playable.pilots]}, got {str(value)[:40]!r}")
        return self._then(lambda: self.game.fly(value))

    def _pause(self, value: Any) -> Callable[[], list[Reply]]:
        paused = _switch("pause", value)
        return self._then(lambda: setattr(self, "paused", paused))

    def _step(self, value: Any) -> Callable[[], list[Reply]]:
        def run() -> list[Reply]:
            self.paused = True
            return [*self._take_step(), self.settings()]

        return run

    def _heat(self, value: Any) -> Callable[[], list[Reply]]:
        temperature = _number("temperature", value, *TEMPERATURES)
        return self._then(lambda: setattr(self.game, "temperature", temperature))

    def _pace(self, value: Any) -> Callable[[], list[Reply]]:
        speed = _number("speed", value, *SPEEDS)
        return self._then(lambda: setattr(self, "speed", speed))

    def _limit(self, value: Any) -> Callable[[], list[Reply]]:
        horizon = None
        if value is not None:
            horizon = _whole("horizon", value, 1, MAX_HORIZON)
        return self._then(lambda: setattr(self.game, "horizon", horizon))

    def _start(self, value: Any) -> Callable[[], list[Reply]]:
        if value not in STARTS:
            raise BadMessage(f"start must be one of {list(STARTS)}, got {str(value)[:40]!r}")

        def run() -> list[Reply]:
            self.game.start = value
            return self._begin(self.seed)

        return run

    def _wake(self, value: Any) -> Callable[[], list[Reply]]:
        switch = self.game.wake if _switch("awake", value) else self.game.sleep

        def run() -> list[Reply]:
            self.scene = switch()
            return [_show(self.scene), self.settings()]

        return run

    def _record(self, value: Any) -> Callable[[], list[Reply]]:
        """`true` starts a recording; a format ends it and sends the file."""
        if value is not True and value not in FORMATS:
            raise BadMessage(f"record must be true or one of {list(FORMATS)}, got {str(value)[:40]!r}")

        def run() -> list[Reply]:
            if value is True:
                self.recording = Recording(self.playable)
                return [self.settings()]
            made, self.recording = self.recording, None
            if not made:
                return [Reply({"kind": "error", "text": "there is no recording; start one first"}), self.settings()]
            return [Reply({"kind": "recording", "format": value}, (made.encode(value),)), self.settings()]

        return run

    def _then(self, change: Callable[[], None]) -> Callable[[], list[Reply]]:
        def run() -> list[Reply]:
            change()
            return [self.settings()]

        return run


def _show(scene: Scene) -> Reply:
    """A step as the page takes it: numbers, then both observations as uint8 or float32, and the features as int8."""
    seen = (scene.dream,) if scene.real is None else (scene.dream, scene.real)
    feat = np.clip(np.round(32 * scene.feat[:LATENT_SHOWN]), -127, 127).astype(np.int8)
    about = {
        "kind": "step",
        "step": scene.step,
        "age": scene.age,
        "act": np.round(np.ravel(scene.act).astype(np.float64), 3).tolist(),
        "rew": _short(scene.rew),
        "ret": _short(scene.ret),
        "cont": _short(scene.cont),
        "disagreement": _short(scene.disagreement),
        "realRew": _short(scene.real_rew),
        "realRet": _short(scene.real_ret),
        "errors": None if scene.errors is None else [_short(x) for x in scene.errors],
        "left": scene.left,
        "dreamOver": scene.dream_over,
        "realOver": scene.real_over,
        "awake": scene.awake,
        "over": scene.over,
    }
    return Reply(about, (*map(_to_bytes, seen), feat.tobytes()))


def _to_bytes(obs: Array) -> bytes:
    """An image as it is; a vector as float32."""
    return (obs if obs.dtype == np.uint8 else obs.astype(np.float32)).tobytes()


def _short(number: float | None) -> float | None:
    """Five digits after the point; NaN and infinity, which JSON lacks, become null."""
    if number is None or not np.isfinite(number):
        return None
    return round(float(number), 5)


def _number(name: str, value: Any, low: float, high: float) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise BadMessage(f"{name} must be a number from {low} to {high}, got {str(value)[:40]!r}")
    return float(value)


def _whole(name: str, value: Any, low: int, high: int) -> int:
    if type(value) is not int or not low <= value <= high:
        raise BadMessage(f"{name} must be a whole number from {low} to {high}, got {str(value)[:40]!r}")
    return int(value)


def _switch(name: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise BadMessage(f"{name} must be true or false, got {str(value)[:40]!r}")
    return value
