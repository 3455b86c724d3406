"""`wm dashboard` follows growing files, copes with half-written ones, and reads nothing outside its folder."""

from __future__ import annotations

import json
import os
import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

import pytest

pytest.importorskip("starlette", reason="the extra `web` is not installed")

from starlette.testclient import TestClient

from wm_agents.cli import app as cli
from wm_agents.cli.web import dashboard_of
from wm_agents.curriculum.promotion import Plateau, Promotion, Standing
from wm_agents.curriculum.record import Evaluation, Record
from wm_agents.data.live import LIVE
from wm_agents.project.schema import VisualizationSection
from wm_agents.system.run_folder import start_run
from wm_agents.web import runs as reading
from wm_agents.web.dashboard import View, dashboard_app
from wm_agents.web.run_facts import PARTS
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
    assert one["round"] == 3 and one["bytes"] > 0 and not one["finished"]
    assert client.get("/run", params={"name": "two"}).json()["env"] == ""


def test_of_many_rounds_the_last_are_shown_with_the_metrics_of_the_run(root: Path, client: TestClient) -> None:
    run = root / "cart" / "vmc" / "one"
    for number in range(2 * PARTS):
        (run / f"round-{number:03d}").mkdir()
        (run / f"round-{number:03d}" / "metrics.jsonl").write_text('{"step": 1, "train/loss": 1.0}\n')
    parts = client.get("/run", params={"name": "cart/vmc/one"}).json()["parts"]
    assert parts[0] == "cart/vmc/one/metrics.jsonl" and len(parts) == PARTS
    assert parts[-1] == f"cart/vmc/one/round-{2 * PARTS - 1:03d}/metrics.jsonl"


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


def test_the_tasks_of_a_curriculum_are_shown_in_order(root: Path, client: TestClient) -> None:
    standing = Standing(Promotion(475.0), Plateau(475.0, 200))
    standing.verdict = "solved"
    record = Record("CartPole", "CartPole-v1", "CartPole-v1", standing, done=True, final={"real": 480.0, "std": 3.0})
    for generation, returns in ((10, [1.0, 3.0]), (20, [500.0])):
        record.evaluations.append(Evaluation(generation, returns, 1, 3.0, None, 0, False, 5.0, 9, 1.0, ""))
    tasks = [["CartPole-v1", 475.0, 200], ["Acrobot-v1", -90.0, 100]]
    with start_run(root / "course", {"tasks": tasks}, {}) as run:
        run.update(tasks={"CartPole-v1": record.to_dict()})
    first, second = client.get("/run", params={"name": "course"}).json()["tasks"]
    assert first["status"] == "solved" and first["final"] == 480.0 and first["threshold"] == 475.0
    assert [look["mean"] for look in first["evaluations"]] == [2.0, 500.0]
    assert first["evaluations"][0]["ci95"] == pytest.approx(12.706) and first["evaluations"][1]["ci95"] is None
    assert second["status"] == "waiting" and second["evaluations"] == [] and second["max_generations"] == 100


def test_strips_live_frames_budgets_and_the_fidelity_report_are_shown(root: Path, client: TestClient) -> None:
    one = root / "cart" / "vmc" / "one"
    for number in (0, 1):
        (one / f"round-0{number}" / "strips").mkdir(parents=True, exist_ok=True)
        (one / f"round-0{number}" / "strips" / "step-0000.png").write_bytes(b"strip")
    (one / LIVE).write_bytes(b"live")
    (one / "data").mkdir()
    (one / "data" / "seed-0.h5").write_bytes(b"x" * 1000)
    (one / "fidelity").mkdir()
    (one / "fidelity" / "fidelity.html").write_text("<style>p {}</style>")
    (one / "fidelity" / "fidelity.json").write_text('{"verdicts": {"gap": "small"}, "real_episodes": 8}')
    with start_run(one, {"spec": {"id": "CartPole-v1"}, "family": "vmc"}, {"collect": 1}) as run:
        run.update(limits={"rounds": 4, "data_gb": 5.0}, stage="learn", plan={"budget_s": 600.0})
    facts = client.get("/run", params={"name": "cart/vmc/one"}).json()
    assert [strip["title"] for strip in facts["strips"]] == ["cart/vmc/one/round-00", "cart/vmc/one/round-01"]
    assert facts["live"] == "cart/vmc/one/live.png" and facts["media"] == []
    assert (facts["data_bytes"], facts["data_gb"], facts["rounds"], facts["stage"]) == (1000, 5.0, 4, "learn")
    assert facts["ram_gb"] > 0.1 and facts["budget_s"] == 600.0
    assert facts["fidelity"] == {
        "verdicts": {"gap": "small"},
        "episodes": 8,
        "page": "cart/vmc/one/fidelity/fidelity.html",
    }
    live = client.get("/file", params={"file": facts["live"]})
    (one / LIVE).write_bytes(b"next")
    assert (
        live.content == b"live"
        and client.get("/file", params={"file": facts["live"]}).headers["etag"] != live.headers["etag"]
    )


def test_a_report_is_sent_without_the_rights_of_the_page(root: Path, client: TestClient) -> None:
    (root / "two" / "fidelity.html").write_text("<script>")
    answer = client.get("/report", params={"file": "two/fidelity.html"})
    policy = answer.headers["content-security-policy"]
    assert answer.text == "<script>" and "sandbox" in policy and "script-src" not in policy and "'none'" in policy
    for name in ("two/run.json", "../fidelity.html", "two"):
        assert client.get("/report", params={"file": name}).status_code == 404


def test_the_time_of_a_run_counts_from_its_only_start(root: Path, client: TestClient) -> None:
    def spent(*starts: object) -> object:
        (root / "two" / "run.json").write_text(json.dumps({"starts": [{"started_at": at} for at in starts]}))
        os.utime(root / "two" / "run.json", (1_000_000_090, 1_000_000_090))
        return client.get("/run", params={"name": "two"}).json()["spent_s"]

    began = "2001-09-09T01:46:40+00:00"  # A thousand million seconds after 1970 began.
    assert spent(began) == 90
    assert spent(began, began) is spent("yesterday") is spent(7) is None


FOREIGN = [
    '{"config": {"tasks": [[], 1, ["A", "b", NaN]]}, "starts": {}}',
    '{"config": {"tasks": [["A"]]}, "starts": [7]}',
    "[" * 5000,
]
STATES = ['{"tasks": {"A": {"evaluations": [{}, {"returns": [1e999, "x"], "generation": 1}, 3], "standing": []}}}', '{"tasks": 3, "limits": 4, "round": Infinity}', "{"]  # fmt: skip  # noqa: E501


@pytest.mark.parametrize("record, state", [*zip(FOREIGN, STATES, strict=True)], ids=range(3))
def test_files_of_foreign_runs_may_contain_anything(record: str, state: str, root: Path, client: TestClient) -> None:
    (root / "two" / "run.json").write_text(record)
    (root / "two" / "state.json").write_text(state)
    (root / "two" / "summary.json").write_text('{"real": {"mean": NaN, "std": "x"}, "dream": 1}')
    (root / "two" / "fidelity.json").write_text('{"verdicts": [1], "real_episodes": 1e400}')
    (root / "two" / b"bad\xff.png".decode(errors="surrogateescape")).write_bytes(b"x")
    assert client.get("/runs").status_code == 200
    facts = client.get("/run", params={"name": "two"}).json()
    assert facts["final"] == {} and facts["media"] == [] and facts["fidelity"]["verdicts"] == {}


def test_the_page_gets_its_settings(root: Path) -> None:
    with TestClient(dashboard_app(root, View(250, 99)), base_url="http://127.0.0.1:8766") as client:
        assert client.get("/view").json() == {"refresh_ms": 250, "points": 99}
    with pytest.raises(ValueError, match=r"refresh_ms >= 100 and history_max_points >= 2, got 99 and 1"):
        dashboard_app(root, View(99, 1))


def test_the_dashboard_of_a_run_is_open_while_it_is_trained(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]  # Another one is taken.
        with dashboard_of(tmp_path / "out", VisualizationSection(dashboard=True, port=port)):
            url = re.search(r"http://127.0.0.1:(\d+)/", capsys.readouterr().err)
            assert url is not None and int(url[1]) != port
            with urlopen(url[0] + "runs") as answer:
                assert json.load(answer) == []
    with pytest.raises(URLError):
        urlopen(url[0])


def test_no_dashboard_is_served_unless_asked_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with dashboard_of(tmp_path / "out", VisualizationSection()):
        assert capsys.readouterr().err == "" and not (tmp_path / "out").exists()


FLAGS = {
    "improve": ["--env", "CartPole-v1", "--dashboard"],
    "curriculum": ["--dashboard"],
    "train": ["--config", "{toml}", "--dashboard"],
}


@pytest.mark.parametrize("command", FLAGS)
def test_trainings_serve_the_dashboard_of_their_folder(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[VisualizationSection] = []

    @contextmanager
    def note(folder: object, given: VisualizationSection) -> Iterator[None]:
        asked.append(given)
        raise KeyboardInterrupt
        yield

    monkeypatch.chdir(tmp_path)
    toml = tmp_path / "wm.toml"
    toml.write_text('environment = "CartPole-v1"\nmodel = "ensemble:ci"\n')
    for module in ("commands", "curriculum", "project"):
        monkeypatch.setattr(f"wm_agents.cli.{module}.dashboard_of", note)
    monkeypatch.setattr("wm_agents.cli.curriculum.look_around", lambda *_: True)
    assert cli.main([command, *(flag.format(toml=toml) for flag in FLAGS[command])]) == 2
    assert [given.dashboard for given in asked] == [True]


def test_foreign_hosts_are_rejected_here_too(client: TestClient) -> None:
    assert client.get("/runs", headers={"host": "evil.example"}).status_code == 403
    assert client.get("/").status_code == 200 and client.get("/static/dashboard.js").status_code == 200


def test_a_missing_folder_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["dashboard", str(tmp_path / "none")]) == 1
    assert "RUNS_DIR must be a folder with runs" in capsys.readouterr().err
