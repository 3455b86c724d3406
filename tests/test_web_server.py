"""`wm play` over HTTP, without a browser: pages, messages, limits, and what foreign sites and clients may do."""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("starlette", reason="the extra `web` is not installed")
pytest.importorskip("uvicorn", reason="the extra `web` is not installed")

import numpy as np
from starlette.testclient import TestClient
from starlette.websockets import WebSocketDisconnect

from wm_agents.cli import app as cli
from wm_agents.web import server as serving
from wm_agents.web.guard import RateLimit, _name_of, make_token
from wm_agents.web.playable import Playable, load_playable
from wm_agents.web.server import PAUSE_S, STATIC, Server, next_due
from wm_agents.web.session import MAX_PENDING, BadMessage, Reply, Session, _show

URL, WS = "http://127.0.0.1:8765", "ws://127.0.0.1:8765/play"


@pytest.fixture(scope="module")
def playable() -> Playable:
    return load_playable("Dream-Acrobot-v0")  # Its episodes outlast every test, on slow machines, too.


@pytest.fixture
def server(playable: Playable) -> Server:
    return Server(playable, max_sessions=2)


@pytest.fixture
def client(server: Server) -> Iterator[TestClient]:
    with TestClient(server.app(), base_url=URL) as client:
        yield client


def unpack(data: bytes) -> tuple[dict[str, Any], list[bytes]]:
    (length,) = struct.unpack_from("<I", data)
    about, at, parts = json.loads(data[4 : 4 + length]), 4 + length, []
    for size in about["sizes"]:
        parts.append(data[at : at + size])
        at += size
    assert at == len(data)
    return about, parts


def wait_for(ws: Any, kind: str, **wanted: Any) -> tuple[dict[str, Any], list[bytes]]:
    """The next message of this kind with these values; steps are confirmed as the page does."""
    while True:
        about, parts = unpack(ws.receive_bytes())
        if about["kind"] == "step":
            ws.send_text("seen")
        if about["kind"] == kind and all(about.get(key) == value for key, value in wanted.items()):
            return about, parts


def test_a_visitor_plays(client: TestClient, playable: Playable) -> None:
    with client.websocket_connect(WS) as ws:
        hello, _ = unpack(ws.receive_bytes())
        assert hello["stage"]["name"] == "Dream-Acrobot-v0" and hello["stage"]["pilots"][0] == "person"
        first, (dream, real, feat) = unpack(ws.receive_bytes())
        assert first["step"] == 0 and np.allclose(np.frombuffer(dream, "<f4"), np.frombuffer(real, "<f4"))
        assert len(feat) == playable.model.feat_dim
        ws.send_text("seen")
        ws.send_json({"act": 2})
        wait_for(ws, "step", act=[2.0])
        ws.send_json({"pilot": "policy (mlp)"})
        assert wait_for(ws, "settings")[0]["pilot"] in ("person", "policy (mlp)")
        ws.send_json({"temperature": 0.5})
        wait_for(ws, "settings", temperature=0.5, pilot="policy (mlp)")
        ws.send_json({"awake": True})
        assert wait_for(ws, "step", awake=True)[0]["age"] == 0
        ws.send_json({"pause": True})
        wait_for(ws, "settings", paused=True)
        ws.send_json({"restart": 7})
        assert wait_for(ws, "step", step=0)[0]["age"] == 0
        wait_for(ws, "settings", seed=7)
        ws.send_json({"step": True})
        assert wait_for(ws, "step")[0]["step"] == 1


@pytest.mark.parametrize("form, magic", [("gif", b"GIF89a"), ("mp4", b"ftyp")])
def test_recordings_are_sent(client: TestClient, form: str, magic: bytes) -> None:
    with client.websocket_connect(WS) as ws:
        ws.send_json({"pause": True})
        wait_for(ws, "settings", paused=True)
        ws.send_json({"record": "gif"})
        assert "no recording" in wait_for(ws, "error")[0]["text"]
        ws.send_json({"record": True})
        wait_for(ws, "settings", recording=True)
        for _ in range(4):
            ws.send_json({"step": True})
            wait_for(ws, "step")
        ws.send_json({"record": form})
        about, (data,) = wait_for(ws, "recording")
        assert about["format"] == form and magic in data[:16]
        wait_for(ws, "settings", recording=False)


GARBAGE = [
    "", "{", "null", "[]", "3", '"x"', "{}", '{"a": 1, "b": 2}', '{"unknown": 1}', '{"act": null}', '{"act": [1, 2]}',
    '{"act": NaN}', '{"act": 1e999}', '{"act": 5}', '{"temperature": -1}', '{"temperature": "hot"}',
    '{"speed": Infinity}', '{"horizon": 0}', '{"horizon": 1.5}', '{"restart": -1}', '{"restart": 99999999999}',
    '{"pilot": "nobody"}', '{"pilot": ["x"]}', '{"start": {}}', '{"awake": 1}', '{"record": "exe"}', '{"pause": "yes"}',
    "[" * 2000,
]  # fmt: skip


def test_garbage_is_answered_and_the_game_continues(client: TestClient) -> None:
    with client.websocket_connect(WS) as ws:
        for text in GARBAGE:
            ws.send_text(text)
            assert wait_for(ws, "error")[0]["text"], text
        before = wait_for(ws, "step")[0]["step"]
        assert wait_for(ws, "step")[0]["step"] == before + 1


@pytest.mark.parametrize("data", ["x" * 5000, b"bytes"])
def test_long_and_binary_messages_end_the_connection(client: TestClient, server: Server, data: str | bytes) -> None:
    with client.websocket_connect(WS) as ws:
        ws.send({"type": "websocket.receive", "bytes" if isinstance(data, bytes) else "text": data})
        assert "at most 4096 characters" in wait_for(ws, "closed")[0]["text"]
        with pytest.raises(WebSocketDisconnect) as closed:
            while True:
                ws.receive_bytes()
        assert closed.value.code == 1009
    assert server.sessions == 0


def test_places_are_limited_and_freed(client: TestClient, server: Server) -> None:
    with client.websocket_connect(WS) as one, client.websocket_connect(WS) as two:
        wait_for(one, "step")
        wait_for(two, "step")
        with client.websocket_connect(WS) as three:
            assert "all 2 places are taken" in unpack(three.receive_bytes())[0]["text"]
        wait_for(one, "step")
    assert server.sessions == 0
    with client.websocket_connect(WS) as again:
        wait_for(again, "step")


def test_visitors_have_games_of_their_own(client: TestClient) -> None:
    with client.websocket_connect(WS) as one, client.websocket_connect(WS) as two:
        one.send_json({"temperature": 0.3})
        wait_for(one, "settings", temperature=0.3)
        two.send_json({"pause": True})
        assert wait_for(two, "settings", paused=True)[0]["temperature"] == 1.0
        wait_for(one, "step")


def test_a_client_that_confirms_nothing_gets_few_steps(client: TestClient) -> None:
    with client.websocket_connect(WS) as ws:
        kinds = [unpack(ws.receive_bytes())[0]["kind"] for _ in range(2 + serving.AHEAD)]
        assert kinds.count("step") == serving.AHEAD
        ws.send_json({"temperature": 0.7})  # Commands are applied; no step comes before the answer.
        assert unpack(ws.receive_bytes())[0]["kind"] == "settings"


def test_idle_sessions_are_closed(playable: Playable) -> None:
    server = Server(playable, timeout_s=1e-9)
    with TestClient(server.app(), base_url=URL) as client, client.websocket_connect(WS) as ws:
        assert "without input" in wait_for(ws, "closed")[0]["text"]
    assert server.sessions == 0


def test_a_crash_of_one_game_frees_its_place(playable: Playable, monkeypatch: pytest.MonkeyPatch) -> None:
    server = Server(playable)
    monkeypatch.setattr(Session, "advance", lambda self: 1 / 0)
    broken = pytest.raises(BaseException, match="division|unhandled")
    with broken, TestClient(server.app(), base_url=URL) as client, client.websocket_connect(WS) as ws:
        while True:
            ws.receive_bytes()
    assert server.sessions == 0


def test_foreign_hosts_and_origins_are_rejected(client: TestClient) -> None:
    assert client.get("/").status_code == 200
    for host in ("evil.example", "evil.example:8765", "127.0.0.1.evil.example", "[::1].evil", ""):
        answer = client.get("/", headers={"host": host})
        assert answer.status_code == 403 and "Host must be one of" in answer.text
    for host in ("localhost:8765", "[::1]:8765", "127.0.0.1"):
        assert client.get("/", headers={"host": host}).status_code == 200
    for origin in ("http://evil.example", "http://127.0.0.1:1", "null", "file://"):
        with pytest.raises(WebSocketDisconnect), client.websocket_connect(WS, headers={"origin": origin}):
            pass
    with client.websocket_connect(WS, headers={"origin": URL, "host": "127.0.0.1:8765"}) as ws:
        wait_for(ws, "step")


def test_another_address_needs_the_token(playable: Playable) -> None:
    assert make_token("127.0.0.1") == make_token("localhost") == "" and len(make_token("0.0.0.0")) >= 24
    app = Server(playable).app("0.0.0.0", "secret")
    with TestClient(app, base_url="http://box.example:8765") as client:
        for query in ("", "?token=", "?token=Secret", "?token=secre", "?token=%00"):
            assert client.get(f"/{query}").status_code == 403
            with pytest.raises(WebSocketDisconnect), client.websocket_connect(f"ws://box.example:8765/play{query}"):
                pass
        assert client.get("/?token=secret").status_code == 200
        assert client.get("/static/play.js").status_code == 200
        with client.websocket_connect("ws://box.example:8765/play?token=secret") as ws:
            wait_for(ws, "step")


def test_pages_run_no_inline_script_and_load_nothing_from_elsewhere(client: TestClient) -> None:
    answer = client.get("/")
    policy = answer.headers["content-security-policy"]
    assert "default-src 'none'" in policy and "unsafe" not in policy and "*" not in policy
    assert answer.headers["x-content-type-options"] == "nosniff" and answer.headers["referrer-policy"] == "no-referrer"
    for page in STATIC.rglob("*.html"):
        text = page.read_text()
        assert not re.search(r"<script(?![^>]* src=)|\son\w+=|\sstyle=|https?://", text), page
    for file in [*STATIC.rglob("*.js"), *STATIC.rglob("*.css")]:
        assert not re.search(r"https?://(?!www\.w3\.org)|\beval\(|new Function|@import|innerHTML", file.read_text()), (
            file
        )


PATHS = [
    "../setup.cfg", "..%2f..%2fsetup.cfg", "%2e%2e/%2e%2e/setup.cfg", "..%252f..%252fsetup.cfg", "....//setup.cfg",
    "/etc/passwd", "%2fetc%2fpasswd", "..\\..\\setup.cfg", "..%5c..%5csetup.cfg", "play.html%00.js", "%00", "~/x",
]  # fmt: skip


@pytest.mark.parametrize("path", PATHS)
def test_no_other_file_can_be_read(client: TestClient, path: str) -> None:
    answer = client.get(f"/static/{path}")
    assert answer.status_code in (400, 404), (path, answer.status_code)


def test_floods_wait() -> None:
    now = [0.0]
    limit = RateLimit(10, 5, clock=lambda: now[0])
    assert [limit.delay() for _ in range(5)] == [0] * 5
    assert limit.delay() == pytest.approx(0.1) and limit.delay() == pytest.approx(0.2)
    now[0] = 100
    assert [limit.delay() for _ in range(6)] == [0, 0, 0, 0, 0, pytest.approx(0.1)]


def test_commands_wait_in_limited_number(playable: Playable) -> None:
    session = Session(playable)
    session.open()
    for _ in range(MAX_PENDING):
        session.post('{"pause": true}')
    with pytest.raises(BadMessage, match="commands are waiting"):
        session.post('{"pause": true}')
    assert len(session.advance()) == 1  # One at a time, so that other visitors' steps come in between.
    session.post('{"pause": true}')
    session.close()


def test_reality_can_take_over_after_the_end_of_the_dream(playable: Playable) -> None:
    session = Session(playable)
    session.open()
    session.post('{"horizon": 2}')
    for _ in range(4):
        session.advance()
    assert session.scene.dream_over == "truncated" and session.scene.step == 2
    session.post('{"awake": true}')
    assert [reply.about["kind"] for reply in session.advance()] == ["step", "settings"]  # Shown also while paused.
    assert session.scene.awake and not session.scene.over
    session.advance()
    assert session.scene.step == 3
    session.close()


def test_commands_do_not_put_off_the_next_step() -> None:
    step, settings = Reply({"kind": "step"}), Reply({"kind": "settings"})
    assert next_due(10.0, 10.25, 0.5, [step]) == 10.5
    assert next_due(10.0, 12.0, 0.5, [step]) == 12.0  # Late.
    assert next_due(20.0, 10.0, 0.5, [step]) == 10.5  # After single steps.
    assert next_due(10.5, 10.25, 0.5, [settings]) == 10.5
    assert next_due(10.0, 12.0, 0.5, []) == 12.0 + PAUSE_S


def test_numbers_that_json_lacks_become_null(playable: Playable) -> None:
    session = Session(playable)
    session.open()
    scene = session.scene._replace(rew=float("nan"), disagreement=float("inf"))
    about, _ = unpack(_show(scene).packed())
    assert about["rew"] is None and about["disagreement"] is None
    session.close()


@pytest.mark.parametrize("host, name", [("[::1]:80", "::1"), ("A.b:1", "a.b"), ("[", ""), ("", "")])
def test_names_of_hosts(host: str, name: str) -> None:
    assert _name_of(host) == name


def test_what_is_wrong_is_said_in_one_line(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    import socket

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        assert cli.main(["play", "Dream-CartPole-v0", "--port", port, "--no-real"]) == 1
    assert f"cannot listen on 127.0.0.1:{port}" in capsys.readouterr().err
    assert cli.main(["play", "Dream-CartPole-v0", "--max-sessions", "0"]) == 1
    assert "max_sessions >= 1" in capsys.readouterr().err
    monkeypatch.setitem(__import__("sys").modules, "uvicorn", None)
    assert cli.main(["play", "Dream-CartPole-v0"]) == 1
    assert "pip install 'dreams-as-envs[web]'" in capsys.readouterr().err


def test_stopping_the_server_is_not_an_interruption(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(self: Any, sockets: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("uvicorn.Server.run", stopped)
    assert cli.main(["play", "Dream-CartPole-v0", "--port", "0", "--no-real"]) == 0
    assert "interrupted" not in capsys.readouterr().err


def test_the_static_files_are_packaged(monkeypatch: pytest.MonkeyPatch) -> None:
    from setuptools import Distribution

    monkeypatch.chdir(Path(__file__).parents[1])
    distribution = Distribution()
    distribution.parse_config_files(["setup.cfg"])
    command = distribution.get_command_obj("build_py")
    command.ensure_finalized()
    files = {name for package, _, _, names in command.data_files for name in names}
    assert {f"web/static/{path.relative_to(STATIC)}" for path in STATIC.rglob("*.*")} <= files
