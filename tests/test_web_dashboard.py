"""`wm dashboard` follows growing files, copes with half-written ones, and reads nothing outside its folder."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("starlette", reason="the extra `web` is not installed")

from starlette.testclient import TestClient

from wm_agents.cli import app as cli
from wm_agents.system.run_folder import start_run
from wm_agents.web import runs as reading
from wm_agents.web.dashboard import dashboard_app
from wm_agents.web.runs import Runs


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "runs"
    with start_run(
        root / "cart" / "vmc" / "one", {"spec": {"id": "CartPole-v1"}, "family": "vmc"}, {"collect": 1}
    ) as run:
        run.metrics(0, {"control/dream": 1.0, "judge/real": 2.0})
        run.update(round=3)
    inner = root / "cart" / "vmc" / "one" / "round-00" / "memory"
    inner.mkdir(parents=True)
    (inner / "metrics.jsonl").write_text('{"step": 5, "train/loss": 0.5}\n')
    (root / "two").mkdir()
    (root / "two" / "run.json").write_text("{half")
    (tmp_path / "secret.png").write_bytes(b"secret")
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "secret": 1}\n')
    return root


@pytest.fixture
def client(root: Path) -> Iterator[TestClient]:
    with TestClient(dashboard_app(root), base_url="http://127.0.0.1:8766") as client:
        yield client


def test_runs_are_found_with_what_is_known_of_them(client: TestClient) -> None:
    runs = {run["name"]: run for run in client.get("/runs").json()}
    assert set(runs) == {"cart/vmc/one", "two"}  # Parts of a run are not runs.
    one = client.get("/run", params={"name": "cart/vmc/one"}).json()
    assert one["env"] == "CartPole-v1" and one["family"] == "vmc" and one["threshold"] == 475.0
    assert one["parts"] == ["cart/vmc/one/metrics.jsonl", "cart/vmc/one/round-00/memory/metrics.jsonl"]
    assert one["state"] == {"round": 3} and one["bytes"] > 0 and not one["finished"]
    assert client.get("/run", params={"name": "two"}).json()["env"] == ""


def test_metrics_are_followed_and_half_lines_wait(root: Path) -> None:
    runs, path = Runs(root), root / "two" / "metrics.jsonl"
    path.write_text('{"step": 1, "x": 1}\n{"step": 2, "x"')
    first = runs.metrics("two/metrics.jsonl")
    assert first.rows == [{"step": 1, "x": 1}] and not first.restarted
    assert runs.metrics("two/metrics.jsonl", first.at).rows == []
    with path.open("a") as file:
        file.write(': 2}\nnot json\n[1]\n{"x": 3}\n{"step": 3, "x": NaN, "y": "text", "z": 1}\n')
    second = runs.metrics("two/metrics.jsonl", first.at)
    assert second.rows == [{"step": 2, "x": 2}, {"step": 3, "z": 1}] and second.at == path.stat().st_size
    path.write_text('{"step": 1, "x": 9}\n')  # A resumed run removes rows.
    assert runs.metrics("two/metrics.jsonl", second.at) == ([{"step": 1, "x": 9}], 20, True)


def test_long_files_come_in_chunks(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "CHUNK", 100)
    path = root / "two" / "metrics.jsonl"
    path.write_text("".join(json.dumps({"step": i, "x": i}) + "\n" for i in range(50)) + "x" * 300)
    runs, at, steps = Runs(root), 0, []
    for _ in range(30):
        rows, at, _ = runs.metrics("two/metrics.jsonl", at)
        steps += [row["step"] for row in rows]
    assert steps == list(range(50)) and at >= path.stat().st_size - 100


ESCAPES = ["../secret.png", "/etc/passwd", "..", "two/../../secret.png", "link.png", "loop/x.png", "\0", "a\0.png", "x" * 5000, "~/a.png", "..%2fsecret.png"]  # fmt: skip  # noqa: E501


@pytest.mark.parametrize("name", ESCAPES, ids=range(len(ESCAPES)))
def test_nothing_outside_the_folder_is_read(name: str, root: Path, client: TestClient) -> None:
    os.symlink(root.parent / "secret.png", root / "link.png")
    os.symlink(root / "loop", root / "loop")
    for path, key in (("/file", "file"), ("/metrics", "file"), ("/run", "name")):
        answer = client.get(path, params={key: name})
        assert answer.status_code == 404 and "secret" not in answer.text.replace(name, "").replace("secret.png", "")
    assert client.get("/metrics", params={"file": "../metrics.jsonl"}).status_code == 404
    assert client.get("/file", params={"file": str(root.parent / "secret.png")}).status_code == 404


def test_links_to_runs_elsewhere_are_not_followed(root: Path, client: TestClient) -> None:
    (root.parent / "other").mkdir()
    (root.parent / "other" / "metrics.jsonl").write_text('{"step": 1, "secret": 1}\n')
    os.symlink(root.parent / "other", root / "two" / "other")
    os.symlink(root.parent / "other", root / "other")
    assert {run["name"] for run in client.get("/runs").json()} == {"cart/vmc/one", "two"}
    assert client.get("/run", params={"name": "two"}).json()["parts"] == []
    assert client.get("/metrics", params={"file": "other/metrics.jsonl"}).status_code == 404


def test_only_videos_and_images_are_sent(root: Path, client: TestClient) -> None:
    (root / "two" / "film.mp4").write_bytes(b"film")
    answer = client.get("/file", params={"file": "two/film.mp4"})
    assert answer.content == b"film" and answer.headers["content-type"] == "video/mp4"
    assert client.get("/run", params={"name": "two"}).json()["media"] == ["two/film.mp4"]
    (root / "two" / "page.html").write_text("<script>")
    for name in ("two/run.json", "two/page.html", "two"):
        assert client.get("/file", params={"file": name}).status_code == 404


def test_foreign_hosts_are_rejected_here_too(client: TestClient) -> None:
    assert client.get("/runs", headers={"host": "evil.example"}).status_code == 403
    assert client.get("/").status_code == 200 and client.get("/static/dashboard.js").status_code == 200


def test_a_missing_folder_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["dashboard", str(tmp_path / "none")]) == 1
    assert "RUNS_DIR must be a folder with runs" in capsys.readouterr().err
