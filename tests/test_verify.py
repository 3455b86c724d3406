"""A model that knows its world passes every check; one that is bent in a known way fails the one it is bent in."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import work_here
from toy import Toy
from toy_line import END, LINE, Backwards, constant, playing, subject

from policies.play import EpisodeTask
from wm_agents.checkpoint import sha256
from wm_agents.data.episode import Episode
from wm_agents.degraded import NO_ENV, RANDOM_DATA, mark_degraded
from wm_agents.evaluation.evaluate import Score
from wm_agents.evaluation.variants import contenders
from wm_agents.evaluation.verify import verify as verifying
from wm_agents.evaluation.verify.checks import Check, _welch95, check_gap, check_repeats, expect, try_out
from wm_agents.evaluation.verify.evidence import EvidenceError, is_evidence, read_evidence, write_evidence
from wm_agents.evaluation.verify.verify import Verification, _judge, report, verify
from wm_agents.models.ensemble import Ensemble, EnsembleConfig, Moves
from wm_agents.pretrained import load_model, load_starts, save_model
from wm_envs.action import encode_action
from wm_envs.real import make_real

EXACT = Toy(end=END)


class Still(Toy):
    """Has learned nothing: nothing ever moves."""

    def step(self, latent, act, **kwargs):
        return super().step(latent, act, **kwargs)._replace(latent=latent)


class Fast(Toy):
    """Every dreamed step goes three times as far."""

    def step(self, latent, act, **kwargs):
        return super().step(latent, 3 * act, **kwargs)._replace(rew=(act @ self.moves)[:, 0])


class Generous(Toy):
    """Pays 0.5 too much at every step."""

    def step(self, *args, **kwargs):
        out = super().step(*args, **kwargs)
        return out._replace(rew=out.rew + 0.5)


class Stingy(Toy):
    """Pays 0.5 too little at every step."""

    def step(self, *args, **kwargs):
        out = super().step(*args, **kwargs)
        return out._replace(rew=out.rew - 0.5)


class Promising(Toy):
    """Pays what is right at first, and more and more the longer it dreams: encoding a frame brings it back to earth."""

    def initial(self, num):
        return {**super().initial(num), "age": torch.zeros(num, 1)}

    def encode(self, obs, latent=None, act=None, first=None):
        return {**super().encode(obs, latent, act, first), "age": torch.zeros(len(obs), 1)}

    def step(self, latent, act, **kwargs):
        out = super().step(latent, act, **kwargs)
        age = latent["age"]
        return out._replace(rew=out.rew + age[:, 0], latent={**out.latent, "age": age + 1})


class Endless(Toy):
    """Never ends."""

    def step(self, *args, **kwargs):
        out = super().step(*args, **kwargs)
        return out._replace(cont=torch.ones_like(out.cont))


class Fearful(Toy):
    """Half expects an end at every step."""

    def step(self, *args, **kwargs):
        out = super().step(*args, **kwargs)
        return out._replace(cont=torch.full_like(out.cont, 0.6))


class Forgetful(Toy):
    """Draws from nobody's generator: no dream is ever the same."""

    def step(self, latent, act, *, temperature=1.0, generator=None):
        out = super().step(latent, act)
        return out._replace(latent={"x": out.latent["x"] + torch.randn(len(act), 1) * 0.01})


@pytest.fixture(scope="module")
def held_out() -> list[Episode]:
    among = contenders(constant(0.45), EXACT.act_space, 4)
    return list(playing(EXACT, constant(0.45))([EpisodeTask(1_000_000 + i, (who,)) for i in range(8) for who in among]))


def failed(model: Toy, held_out: list[Episode]) -> list[str]:
    """The checks that the model does not pass."""
    return [check.name for check in _judge(subject(model), Still(end=END), held_out) if check.ok is False]


def test_a_model_that_knows_its_world_passes_every_check(held_out: list[Episode]) -> None:
    checks = _judge(subject(EXACT), Still(end=END), held_out)
    assert [check.ok for check in checks] == [True] * len(checks), checks
    assert [check.name for check in checks] == [
        "frames 1 step ahead", "frames 5 steps ahead", "frames 15 steps ahead", "rewards", "return over 15 steps",
        "termination", "seeds",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("model", "wrong"),
    [
        (Backwards(end=END), {"rewards", "return over 15 steps"}),
        (Generous(end=END), {"rewards", "return over 15 steps"}),
        (Stingy(end=END), {"rewards", "return over 15 steps"}),
        (Promising(end=END), {"return over 15 steps"}),
        (Endless(end=END), {"termination"}),
        (Fearful(end=END), {"termination"}),
        (Fast(end=1e9), {"frames 5 steps ahead", "frames 15 steps ahead", "frames 1 step ahead", "termination"}),
        (Forgetful(end=END), {"seeds"}),
    ],
    ids=lambda x: type(x).__name__ if isinstance(x, Toy) else "",
)
def test_a_bent_model_fails_where_it_is_bent(model: Toy, wrong: set[str], held_out: list[Episode]) -> None:
    got = set(failed(model, held_out))
    assert got and got <= wrong and min(wrong) in got | wrong
    assert got == wrong or isinstance(model, Backwards)  # Sums of random moves and of their opposites are alike.


def test_a_model_that_has_learned_nothing_is_not_a_better_than_itself(held_out: list[Episode]) -> None:
    assert {"frames 1 step ahead", "frames 5 steps ahead", "frames 15 steps ahead"} <= set(failed(Still(), held_out))


def test_a_model_below_the_last_frame_but_not_below_an_untrained_one_fails(held_out: list[Episode]) -> None:
    checks = _judge(subject(EXACT), EXACT, held_out)  # type: ignore[arg-type]
    assert [check.ok for check in checks[:3]] == [False] * 3
    assert "error 0 (last frame" in checks[0].found


def test_a_model_below_an_untrained_one_but_not_below_the_last_frame_fails(held_out: list[Episode]) -> None:
    class Wild(Toy):
        def step(self, latent, act, **kwargs):
            return super().step(latent, 30 * act, **kwargs)

    checks = _judge(subject(Fast(end=END)), Wild(end=END), held_out)[:3]  # type: ignore[arg-type]
    assert [check.ok for check in checks] == [False] * 3
    for check in checks:
        assert check.numbers is not None and check.numbers["error"] < check.numbers["untrained"]


def test_a_reward_that_never_changes_must_be_reported(held_out: list[Episode]) -> None:
    same = [ep._replace(rew=np.full_like(ep.rew, 2.0)) for ep in held_out]

    class Pays(Toy):
        rew = 2.0

        def step(self, *args, **kwargs):
            return super().step(*args, **kwargs)._replace(rew=torch.full((len(args[1]),), self.rew))

    model = Pays(end=END)
    assert failed(model, same) == []
    model.rew = 2.3
    assert failed(model, same) == ["rewards", "return over 15 steps"]


def test_few_ends_are_evaluated_by_how_many_are_predicted(held_out: list[Episode]) -> None:
    cut = [ep._replace(term=False, trunc=True) for ep in held_out]
    assert failed(Endless(), cut) == []
    assert failed(Fearful(), cut) == ["termination"]
    (ends,) = (check for check in _judge(subject(Fearful()), Still(), cut) if check.name == "termination")
    assert ends.found.startswith("0 real terminations in ")


def test_horizons_that_no_episode_reaches_are_not_evaluated(held_out: list[Episode]) -> None:
    short = [ep for ep in held_out if ep.num_steps < 15]
    checks = _judge(subject(EXACT), Still(end=END), short)
    assert [check.ok for check in checks[:3]] == [True, True, None]
    assert checks[2].found.endswith("20 are needed")
    some = try_out(subject(EXACT), Still(end=END), short[:1])
    assert max(some.copied) == 5


def test_rewards_are_expected_over_draws() -> None:
    class Lottery(Toy):
        def step(self, latent, act, *, temperature=1.0, generator=None):
            out = super().step(latent, act)
            return out._replace(rew=2.0 * (torch.rand(len(act), generator=generator) < 0.5))

    episode = Episode(
        np.zeros((41, 2), np.float32), np.zeros((40, 1), np.float32), np.ones(40, np.float32), False, True, 0, {}
    )
    seen = expect(subject(Lottery()), [episode], draws=400)
    assert abs(seen.rew - 1).max() < 0.3 and len(seen.rew) == 40


def test_the_gap_must_lie_within_a_quarter_of_what_is_earned_above_random_play() -> None:
    real, chance = Score([90.0, 110.0] * 50), Score([0.0] * 100)
    assert check_gap(real, Score([100.0, 120.0] * 50), chance).ok
    assert not check_gap(real, Score([120.0, 140.0] * 50), chance).ok
    # The mean is within the margin and its interval is not.
    wide = check_gap(real, Score([0.0, 240.0] * 50), chance)
    assert not wide.ok and wide.numbers is not None and wide.numbers["gap"] == 20 and wide.numbers["margin"] == 25
    assert not check_gap(chance, chance._replace(returns=[1.0] * 100), chance).ok


def test_the_interval_of_a_difference_is_welchs() -> None:
    # Welch 1947: variances 4/4 and 0/4: 3 degrees of freedom.
    assert _welch95(Score([0.0, 4.0, 0.0, 4.0]), Score([1.0] * 4)) == pytest.approx(3.182 * (16 / 3 / 4) ** 0.5)
    assert _welch95(Score([1.0, 1.0]), Score([2.0, 2.0])) == 0.0


def test_seeds_that_repeat_pass() -> None:
    assert check_repeats(subject(Toy(noise=0.1)))[1:3] == (
        True,
        "the same seed repeats the dream, each row equals its single dream",
    )


@pytest.fixture(scope="module")
def line(tmp_path_factory: pytest.TempPathFactory, learning_seed: int) -> Path:
    """An ensemble that has learned the line, saved."""
    env = make_real(LINE)
    torch.manual_seed(learning_seed)
    model = learned(Ensemble(EnsembleConfig.from_size("ci"), env.observation_space, env.action_space))
    return save_line(tmp_path_factory.mktemp("models") / "line", model)


def save_line(path: Path, model: Ensemble) -> Path:
    starts = {bank: {"obs": torch.zeros(8, 2)} for bank in ("begin", "anywhere")}
    save_model(path, model, LINE, starts, horizon=20, card="# line\n", policy=constant(0.45))
    return path


def learned(model: Ensemble) -> Ensemble:
    """What 200 updates on 3,000 steps of the line teach."""
    rng = np.random.default_rng(0)
    x, last, move = (rng.uniform(low, 1, 3000).astype(np.float32) for low in (-1, -1, -1))
    x = 5 * x
    obs, act = np.stack([x, last], 1), encode_action(model.act_space, move[:, None])
    after = np.stack([x + move, move], 1)
    moves = Moves(*(torch.from_numpy(part) for part in (obs, act, move, (after[:, 0] > END).astype(np.float32), after)))
    model.scale.fit(moves.obs, moves.next_obs, moves.rew, moves.term, first=True)
    optimizer = torch.optim.Adam(model.parameters(), 5e-3)
    for _ in range(200):
        pick = torch.randint(3000, (2, 256))
        optimizer.zero_grad()
        model.moves_loss(Moves(*(part[pick] for part in moves))).loss.backward()
        optimizer.step()
    return model.eval()


def verified(model: Path, **kwargs) -> Verification:
    return verify(str(model), procs=0, **kwargs)


def test_a_model_that_was_learned_is_verified(line: Path) -> None:
    found = verified(line)
    assert found.verified, report(found)
    assert (found.family, found.env, found.mode, found.episodes) == ("ensemble", "Line-v0", "quick", 20)
    assert found.model_sha256 == sha256(line / "config.json")
    assert json.loads(json.dumps(found.to_dict(), allow_nan=False))["checks"][0]["name"] == "artifact"
    lines = report(found).splitlines()
    assert len(lines) == len(found.checks) + 1 and all(text.startswith("  ok ") for text in lines[:-1])
    assert lines[-1].startswith(f"{line}: verified (quick), on 20 held-out episodes of Line-v0 (")


def test_what_could_not_be_evaluated_is_not_verified(line: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verifying, "_judge", lambda *args: [Check("rewards", None, "too short")])
    found = verified(line, episodes=1)
    assert not found.verified and not [check for check in found.checks if check.ok is False]
    assert "  -    rewards   too short" in report(found)


def test_a_model_that_hallucinates_reward_is_not_verified(line: Path, tmp_path: Path) -> None:
    model, _ = load_model(line)
    assert isinstance(model, Ensemble)
    with torch.no_grad():
        model.reward.biases[-1] += 0.8 / model.scale.rew
    found = verified(save_line(tmp_path / "m", model))
    assert not found.verified
    assert {c.name for c in found.checks if c.ok is False} == {"rewards", "return over 15 steps"}
    assert "NOT verified (quick)" in report(found)


@pytest.mark.parametrize("name", ["model.safetensors", "policy_linear.safetensors"])
def test_a_changed_file_is_not_an_artifact(name: str, line: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(line, tmp_path / "m"))
    data = bytearray((copy / name).read_bytes())
    data[-1] ^= 1
    (copy / name).write_bytes(data)
    found = verified(copy)
    assert not found.verified and [check.name for check in found.checks] == ["artifact"]
    assert "sha256 expected" in found.checks[0].found


def test_a_file_that_nobody_vouches_for_is_seen(line: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(line, tmp_path / "m"))
    shutil.copy(copy / "policy_linear.safetensors", copy / "policy_mlp2.safetensors")
    found = verified(copy, episodes=1)
    (check,) = found.checks
    assert check.name == "artifact" and check.ok is False and "does not list policy_mlp2.safetensors" in check.found


def test_what_was_trained_on_random_data_is_never_verified(line: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(line, tmp_path / "outputs" / "model"))
    mark_degraded(copy, [RANDOM_DATA])
    found = verified(copy, episodes=1)
    assert not found.verified and found.degraded_modes == [RANDOM_DATA]
    assert [c.name for c in found.checks if c.ok is False] == ["data"]
    assert "DEGRADED: random_data" in report(found)
    # The run's own manifest tells as much.
    plain = Path(shutil.copytree(line, tmp_path / "others" / "model"))
    (plain.parent / "run_manifest.json").write_text(json.dumps({"degraded_modes": [NO_ENV]}))
    assert verified(plain, episodes=1).degraded_modes == [NO_ENV]


def test_nothing_is_noted_of_a_run_that_had_everything(line: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(line, tmp_path / "m"))
    before = (copy / "config.json").read_bytes()
    mark_degraded(copy, [])
    assert (copy / "config.json").read_bytes() == before


def test_held_out_seeds_only(line: Path) -> None:
    with pytest.raises(ValueError, match="seed must be at least 1,000,000, because lower seeds are for training"):
        verified(line, seed=5)
    with pytest.raises(ValueError, match="proof_episodes must be at least 2; got 1"):
        verified(line, proof_episodes=1)
    with pytest.raises(FileNotFoundError, match="nowhere"):
        verified(Path("nowhere"))


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Real episodes without processes of their own."""
    work_here(monkeypatch)


@pytest.fixture(scope="module")
def proof(line: Path) -> Verification:
    with pytest.MonkeyPatch.context() as patch:
        work_here(patch)
        return verified(line, mode="proof", proof_episodes=10, episodes=1)


def test_a_proof_compares_returns_and_leaves_evidence(proof: Verification, line: Path, tmp_path: Path) -> None:
    assert proof.verified, report(proof)
    gap = proof.checks[-1]
    assert gap.name == "return gap" and gap.numbers is not None
    assert gap.numbers["real"] == pytest.approx(9 * 0.45, abs=0.01)
    assert {name: len(values) for name, values in proof.returns.items()} == {"real": 10, "dream": 10, "random": 10}
    out = write_evidence(proof, tmp_path / "evidence")
    assert is_evidence(out) and read_evidence(out) == proof.to_dict()
    manifest = json.loads((out / "manifest.json").read_text())
    assert (manifest["schema"], manifest["verified"], manifest["mode"]) == ("wm.evidence.v1", True, "proof")
    assert set(manifest["files"]) == {"verification.json", "report.txt", "model_config.json"}
    assert write_evidence(proof, out) == out  # A bundle may be written anew.
    assert [path.name for path in tmp_path.iterdir()] == ["evidence"]


def test_a_bundle_takes_the_runs_manifest_along(line: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(line, tmp_path / "outputs" / "model"))
    (copy.parent / "run_manifest.json").write_text('{"degraded_modes": []}')
    out = write_evidence(verified(copy, episodes=1), tmp_path / "evidence")
    assert (out / "run_manifest.json").read_text() == '{"degraded_modes": []}'


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda d: (d / "report.txt").write_text("verified!"), "report.txt was changed: sha256 expected"),
        (lambda d: (d / "report.txt").unlink(), r"missing files \['report.txt'\]"),
        (lambda d: (d / "more.txt").write_text(""), r"added files \['more.txt'\]"),
        (lambda d: edit(d / "manifest.json", schema="wm.evidence.v9"), "schema must be 'wm.evidence.v1', got"),
        (lambda d: edit(d / "manifest.json", verified=False), "the recorded result contradicts the recorded checks"),
        (lambda d: (d / "manifest.json").write_text("{"), "cannot be read"),
    ],
)
def test_a_bundle_that_was_touched_is_rejected(spoil, message: str, proof: Verification, tmp_path: Path) -> None:
    out = write_evidence(proof, tmp_path / "evidence")
    spoil(out)
    with pytest.raises(EvidenceError, match=message):
        read_evidence(out)


def test_a_result_that_its_checks_deny_is_rejected(proof: Verification, tmp_path: Path) -> None:
    out = write_evidence(proof, tmp_path / "evidence")
    found = json.loads((out / "verification.json").read_text())
    found["checks"][2]["ok"] = False
    (out / "verification.json").write_text(json.dumps(found))
    files = json.loads((out / "manifest.json").read_text())["files"]
    files["verification.json"]["sha256"] = sha256(out / "verification.json")
    edit(out / "manifest.json", files=files)
    with pytest.raises(EvidenceError, match="the recorded result contradicts the recorded checks"):
        read_evidence(out)


def test_evidence_takes_nobodys_place(proof: Verification, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("words")
    with pytest.raises(EvidenceError, match="is not empty and not an evidence bundle"):
        write_evidence(proof, tmp_path / "mine")
    assert (tmp_path / "mine" / "thesis.txt").exists()


def test_a_model_without_a_controller_proves_nothing(line: Path, tmp_path: Path, here: None) -> None:
    model, artifact = load_model(line)
    save_model(tmp_path / "m", model, LINE, load_starts(artifact), horizon=20, card="# line\n")
    found = verified(tmp_path / "m", mode="proof", episodes=1, proof_episodes=2)
    assert not found.verified
    assert found.checks[-1].found == "the model has no controller; train one with `wm evolve`"


def edit(path: Path, **changes) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
