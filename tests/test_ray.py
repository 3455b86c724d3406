"""A Ray cluster of two nodes plays what processes play: the same numbers, whatever dies."""

from __future__ import annotations

import gc
import io
import json
import logging
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console
from tiny import save_tiny
from toy_env import make_random
from toy_policy import Always, Frail, Raises, Unhurried
from waiting import wait_until

from policies import ray_pool
from policies.cmaes import CMAConfig
from policies.play import EpisodePool, EpisodeResult, EpisodeTask, play
from policies.pool import Procs, WorkerDied, make_pool
from policies.ray_pool import RayCluster, workers_of
from policies.step_count import StepCount
from wm_agents.cli import app as cli
from wm_agents.control.evolve import evolve_in_dream, evolve_in_real
from wm_agents.data import collect as collecting
from wm_agents.data.collect import CollectConfig, CollectSummary, collect
from wm_agents.data.dataset import Dataset
from wm_agents.evaluation.held_out import record
from wm_agents.pretrained import load_dream
from wm_envs.dream import DreamConfig
from wm_envs.registry import RealSpec

ray = pytest.importorskip("ray", reason="the extra `distributed` is not installed: pip install '.[distributed]'")

from ray.cluster_utils import Cluster  # noqa: E402

pytestmark = [pytest.mark.cluster, pytest.mark.filterwarnings("ignore")]

ECHO = RealSpec("toy_env:Echo-v0")
STEADY = RealSpec("toy_env:Echo-v0", kwargs={"length": 6})
STORE = 80 * 2**20
"""Bytes of the object store of a node, near the smallest that Ray takes."""


@pytest.fixture(scope="module")
def nodes() -> Iterator[Cluster]:
    cluster = Cluster(
        initialize_head=True, head_node_args={"num_cpus": 1, "object_store_memory": STORE, "include_dashboard": False}
    )
    cluster.add_node(num_cpus=1, object_store_memory=STORE)
    yield cluster
    ray.shutdown()
    cluster.shutdown()
    del cluster
    gc.collect()  # Here, where the warnings of Ray's processes are ignored.


@pytest.fixture(scope="module")
def cluster(nodes: Cluster) -> RayCluster:
    return RayCluster(nodes.address)


def echoes(procs: Procs, make: Any = Always, spec: RealSpec = ECHO, num: int = 8, **more: Any) -> list[EpisodeResult]:
    return sorted(play(spec, make, [EpisodeTask(100 + i, (i / 10,)) for i in range(num)], procs, **more))


def collected(out: Path, procs: Procs, **changes: Any) -> CollectSummary:
    cfg = {"spec": STEADY, "out": str(out), "steps": 96, "seed": 3, "procs": procs, "shard_episodes": 4, **changes}
    return collect(CollectConfig(**cfg), make_random, console=Console(file=io.StringIO()))


def test_evaluation_gives_the_same_returns_with_one_process_two_and_a_cluster(cluster: RayCluster) -> None:
    one = echoes(1)
    assert echoes(2) == one == echoes(cluster)
    tasks = [EpisodeTask(1_000_000 + i, (0.5,)) for i in range(4)]
    here, there = (list(record(ECHO, Always, tasks, procs)) for procs in (0, cluster))
    assert [ep.seed for ep in there] == [ep.seed for ep in here]
    assert all(np.array_equal(a.obs, b.obs) for a, b in zip(here, there, strict=True))


@pytest.mark.parametrize("shared", [True, False])
def test_a_collection_is_the_same_with_one_process_two_and_a_cluster(
    tmp_path: Path, cluster: RayCluster, shared: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = collected(tmp_path / "1", 1), collected(tmp_path / "2", 2)
    if not shared:  # The workers find another content in the lock file, as on a machine with a folder of that name.
        monkeypatch.setattr(collecting, "_Plan", lambda cfg, mark, plan=collecting._Plan: plan(cfg, "another machine"))
    there = collected(tmp_path / "ray", cluster)
    assert there.returns == two.returns == one.returns and there.bytes == one.bytes
    assert there.taken == one.taken == one.steps == 96
    names = [sorted(path.name for path in (tmp_path / name).iterdir()) for name in ("1", "ray")]
    assert names[0] == names[1]
    data = Dataset(tmp_path / "ray")
    assert data.num_steps == 96 and not data.skipped


def test_max_gb_holds_on_a_cluster(tmp_path: Path, cluster: RayCluster) -> None:
    size = collected(tmp_path / "one", 0, steps=24).bytes
    summary = collected(tmp_path / "many", cluster, steps=10_000, max_gb=2.5 * size / 1e9)
    assert summary.stopped == "max_gb" and 0 < Dataset(tmp_path / "many").num_bytes <= 2.5 * size


def test_evolution_in_dreams_does_not_depend_on_the_number_of_workers(tmp_path: Path, cluster: RayCluster) -> None:
    saved = load_dream(save_tiny(tmp_path / "m", RealSpec("CartPole-v1", max_episode_steps=8)))
    cfg = CMAConfig(population=6, rollouts=20, generations=3, seed=5)
    dream = DreamConfig(horizon=8)
    run = partial(evolve_in_dream, saved.model, saved.starts, cfg, dream)
    here, one, two, there = (run(procs=procs) for procs in (0, 1, 2, cluster))
    assert np.array_equal(one.policy.weights, there.policy.weights)
    assert np.array_equal(one.policy.weights, two.policy.weights)
    assert one.dream_return == two.dream_return == there.dream_return
    assert one.steps == there.steps == here.steps
    assert np.allclose(here.policy.weights, there.policy.weights, atol=1e-6)


def test_evolution_in_the_real_environment_gives_the_same_controller(tmp_path: Path, cluster: RayCluster) -> None:
    model = save_tiny(tmp_path / "m", RealSpec("CartPole-v1", max_episode_steps=8))
    cfg = CMAConfig(population=4, rollouts=2, generations=2, seed=5)
    one, there = (evolve_in_real(model, cfg, procs=procs).weights for procs in (1, cluster))
    assert np.array_equal(one, there)


def test_a_killed_worker_is_replaced_and_its_episode_counts_once(
    tmp_path: Path, cluster: RayCluster, caplog: pytest.LogCaptureFixture
) -> None:
    count = StepCount(tmp_path / "steps")
    with caplog.at_level(logging.WARNING):
        there = echoes(cluster, partial(Frail, str(tmp_path)), count=count)
    assert (tmp_path / "died").exists() and there == echoes(1)
    assert count.value == sum(ep.steps for ep in there)
    assert f"on node {socket.gethostname()} died (killed" in caplog.text


def test_an_episode_that_kills_every_worker_is_given_up(cluster: RayCluster) -> None:
    with pytest.raises(RuntimeError, match=r"toy_env:Echo-v0: worker \d+ on node .* died like others .*seeds: \[100"):
        echoes(cluster, partial(Frail, ""), num=1)


def test_a_worker_that_hangs_is_given_up_and_named(
    tmp_path: Path, cluster: RayCluster, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("WM_STEP_TIMEOUT", "1")
    bad = RealSpec("bad_env:Bad-v0", kwargs={"how": "hang"})
    with (
        caplog.at_level(logging.WARNING),
        pytest.raises(RuntimeError, match=r"worker \d+ on node .*hung.*: \[7\]"),
    ):
        list(play(bad, Always, [EpisodeTask(7, (0.5,))], cluster))
    assert "hung: a step or reset took longer than 1 s (WM_STEP_TIMEOUT)" in caplog.text


def test_an_error_of_an_episode_is_raised_unchanged_and_the_pool_goes_on(cluster: RayCluster) -> None:
    with make_pool(None, cluster) as pool:
        with pytest.raises(ZeroDivisionError):
            list(pool.run(divide, [1, 0]))
        assert sorted(pool.run(divide, [1, 2, 4])) == [(0, 1.0), (1, 0.5), (2, 0.25)]
    with pytest.raises(ArithmeticError, match="the policy broke at step 2"):
        echoes(cluster, Raises, num=2)


def divide(shared: None, halt: Any, number: int) -> float:
    return 1 / number


class Brittle:
    """What no worker can load once `folder` contains the file `broken`."""

    def __init__(self, folder: str) -> None:
        self.folder = folder

    def __setstate__(self, state: dict[str, str]) -> None:
        self.folder = state["folder"]
        if (Path(self.folder) / "broken").exists():
            raise ModuleNotFoundError("No module named 'my_env'")


def break_and_die(shared: Brittle, halt: Any, number: int) -> None:
    (Path(shared.folder) / "broken").touch()
    os._exit(3)


def test_workers_that_cannot_start_end_the_work_with_the_reason(cluster: RayCluster, tmp_path: Path) -> None:
    with (
        make_pool(Brittle(str(tmp_path)), cluster) as pool,
        pytest.raises(WorkerDied, match="no worker can start on the Ray cluster at .*No module named 'my_env'"),
    ):
        list(pool.run(break_and_die, range(2)))


def test_steps_that_cannot_be_counted_are_an_error(cluster: RayCluster, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="gone/steps"):
        echoes(cluster, num=1, count=StepCount(tmp_path / "gone" / "steps"))


def test_what_a_node_lacks_is_named_before_work_begins(cluster: RayCluster, tmp_path: Path) -> None:
    node = rf"node {socket.gethostname()} \([\d.]+\) of the Ray cluster cannot take part: "
    with pytest.raises(RuntimeError, match=node + ".*no_such_env"):
        list(play(RealSpec("no_such_env:Some-v0"), Always, [EpisodeTask(0, (0.5,))], cluster))
    gone = partial(Frail, str(tmp_path / "no" / "model"))
    with pytest.raises(RuntimeError, match=node + ".*no/model does not exist on this machine; put it"):
        list(play(ECHO, gone, [EpisodeTask(0, (0.5,))], cluster))


def test_more_workers_than_cores_are_rejected(cluster: RayCluster) -> None:
    with pytest.raises(ValueError, match="3 workers with a core each do not fit .* whose 2 nodes have room for 2; ask"):
        make_pool(None, RayCluster(cluster.address, workers=3))
    with pytest.raises(ValueError, match="1 workers with 2 cores each do not fit"):
        make_pool(None, RayCluster(cluster.address, cores=2))


def test_commands_take_a_cluster(
    cluster: RayCluster, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = save_tiny(tmp_path / "m", RealSpec("CartPole-v1", max_episode_steps=8))
    results = []
    for flags in (["--procs", "2"], ["--ray", cluster.address]):
        assert cli.main(["evaluate", model, "--episodes", "4", "--json", *flags]) == 0
        results.append(json.loads(capsys.readouterr().out))
    for name in ("real", "dream", "gap"):
        assert results[0][name] == results[1][name]


def test_a_node_that_joins_is_used_and_its_loss_changes_nothing(
    tmp_path: Path, nodes: Cluster, cluster: RayCluster, capsys: pytest.CaptureFixture[str]
) -> None:
    marks = tmp_path / "pids"
    marks.mkdir()
    with EpisodePool(ECHO, partial(Unhurried, str(marks)), cluster) as pool:
        episodes = pool.play([EpisodeTask(100 + i, (i / 10,)) for i in range(60)])
        found = [next(episodes)]
        third = nodes.add_node(num_cpus=1, object_store_memory=STORE)
        while len(list(marks.iterdir())) < 3:  # It has begun to play.
            found.append(next(episodes))
        nodes.remove_node(third, allow_graceful=False)
        found += episodes
    assert sorted(found) == echoes(2, num=60)
    assert "raylet" not in capsys.readouterr().out  # Ray would print the log of the lost node.


def test_work_waits_for_a_node_if_none_with_cores_is_left(
    cluster: RayCluster, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(ray_pool, "COUNT_S", 1e9)  # The pool itself does not look at the machines meanwhile.
    with cluster.pool(None) as pool:
        rooms = iter([[0], [0], [1, 1], [0], [1, 1]])
        monkeypatch.setattr(pool, "_rooms", lambda: next(rooms))
        with caplog.at_level(logging.WARNING):
            for _ in range(5):
                pool._follow_machines()
        assert sorted(pool.run(divide, [1, 2])) == [(0, 1.0), (1, 0.5)]
    line = f"the Ray cluster at {cluster.address} has no cores left: waiting for a node, which `ray start --address"
    assert caplog.text.count(line) == 2  # Once for each time that the last one went.


NOT_CONNECTED = """
import sys
from policies.ray_pool import RayCluster
try:
    RayCluster(sys.argv[1]).pool(None)
except (ImportError, ValueError, RuntimeError) as error:
    print(f"{type(error).__name__}: {error}")
"""


@pytest.mark.parametrize(
    "address, env, text",
    [
        ("127.0.0.1:9", {}, "RuntimeError: no Ray cluster at 127.0.0.1:9 ([Errno 111] Connection refused): start"),
        ("somewhere", {}, "ValueError: ray must be auto, local or HOST:PORT, got 'somewhere'"),
        ("ray://head:10001", {}, "ValueError: ray must be auto, local or HOST:PORT, got 'ray://head:10001'"),
        ("local", {"WM_RUNTIME_ENV": "{"}, "ValueError: WM_RUNTIME_ENV must be a JSON object or the path of a JSON"),
        ("local", {"WM_RUNTIME_ENV": "no.json"}, "ValueError: WM_RUNTIME_ENV must be a JSON object or the path"),
    ],
)
def test_a_cluster_that_cannot_be_used_is_one_line(address: str, env: dict[str, str], text: str) -> None:
    known = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
    done = subprocess.run(
        [sys.executable, "-c", NOT_CONNECTED, address],
        env=known | env,
        capture_output=True,
        text=True,
        timeout=90,
    )
    assert done.stdout.startswith(text) and done.stdout.count("\n") == 1, done.stdout + done.stderr


def test_a_machine_without_a_cluster_is_told_how_to_start_one(monkeypatch: pytest.MonkeyPatch) -> None:
    def find_none(address: str) -> None:
        raise ConnectionError("Could not find any running Ray instance.")

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr("ray._private.services.canonicalize_bootstrap_address", find_none)
    with pytest.raises(RuntimeError, match=r"found no Ray cluster \(auto\): start one with `ray start --head`"):
        make_pool(None, RayCluster("auto"))


def test_a_head_that_is_gone_is_reported_without_waiting_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "ray").mkdir()
    (tmp_path / "ray" / "ray_current_cluster").write_text("127.0.0.1:9")  # As `ray start` left it.
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr("ray._private.services.find_gcs_addresses", set)  # Not those of other tests.
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", None)
    text = r"found no Ray cluster \(auto\): start .*; the last one, at [\d.]+:9, does not answer \(.*refused\)$"
    with pytest.raises(RuntimeError, match=text):
        make_pool(None, RayCluster("auto"))


OTHER_VERSION = """
import ray._private.utils
ray._private.utils.compute_version_info = lambda: ("2.0.0", "3.1.4")
"""


def test_other_versions_than_those_of_the_cluster_are_one_line(cluster: RayCluster) -> None:
    done = subprocess.run(
        [sys.executable, "-c", OTHER_VERSION + NOT_CONNECTED, cluster.address],
        capture_output=True,
        text=True,
        timeout=90,
    )
    here = f"Ray: {ray.__version__} Python: {'.'.join(map(str, sys.version_info[:3]))}"
    assert done.stdout.startswith(f"RuntimeError: Ray at {cluster.address}: Version mismatch: "), done.stderr
    assert here in done.stdout and "Ray: 2.0.0 Python: 3.1.4" in done.stdout and done.stdout.count("\n") == 1


def test_a_connection_whose_head_is_gone_is_made_again(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []

    def connect(**settings: Any) -> None:
        calls.append("init")
        raise ConnectionError("no head")

    monkeypatch.setattr(ray, "is_initialized", lambda: True)
    monkeypatch.setattr(ray, "get_runtime_context", lambda: SimpleNamespace(gcs_address="127.0.0.1:9"))
    monkeypatch.setattr(ray, "shutdown", lambda: calls.append("shutdown"))
    monkeypatch.setattr(ray, "init", connect)
    with pytest.raises(RuntimeError, match=r"Ray at local rejects the connection \(no head\); .* set RAY_AUTH_MODE"):
        make_pool(None, RayCluster("local"))
    assert calls == ["shutdown", "init"]


def test_the_loss_of_the_head_ends_an_evolution_which_resumes_with_processes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = Cluster(
        initialize_head=True, head_node_args={"num_cpus": 1, "object_store_memory": STORE, "include_dashboard": False}
    )
    address = own.address
    model = save_tiny(tmp_path / "m", RealSpec("CartPole-v1", max_episode_steps=8))
    flags = ["--in", "real", "--cma.population", "4", "--cma.rollouts", "2", "--seed", "5"]
    words = ["evolve", model, str(tmp_path / "lost"), *flags, "--ray", address, "--cma.generations", "100000"]
    running = subprocess.Popen([sys.executable, "-m", "wm_agents", *words], stderr=subprocess.PIPE, text=True)
    state = tmp_path / "lost.run" / "evolution.json"
    wait_until(state.exists, running)
    head: Any = own.head_node
    head.kill_gcs_server()
    error = running.communicate(timeout=120)[1]
    own.shutdown()
    assert running.returncode == 1
    assert f"the head of the Ray cluster at {address} does not answer" in error.splitlines()[-1], error
    assert "rpc_client" not in error and "Traceback" not in error
    last = ["--procs", "1", "--cma.generations", str(len(json.loads(state.read_text())["told"]) + 1)]
    for name in ("lost", "whole"):
        assert cli.main(["evolve", model, str(tmp_path / name), *flags, *last]) == 0, capsys.readouterr().err
    one, two = (load_dream(tmp_path / name).policy.tensors() for name in ("lost", "whole"))
    assert one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


def test_processes_or_a_cluster() -> None:
    assert workers_of(None, None) == 2 and workers_of(0, None) == 0
    assert workers_of(None, "auto") == RayCluster("auto") and workers_of(3, "local") == RayCluster("local", 3)


def test_without_ray_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ImportError, match=r"pip install 'dreams-as-envs\[distributed\]'"):
        make_pool(None, RayCluster())
