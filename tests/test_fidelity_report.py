"""The page and the JSON: whole, self-contained, and saying what was measured."""

from __future__ import annotations

import base64
import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console
from tiny import save_tiny
from toy import Toy
from toy_line import END, Doubtful, playing, subject

from policies.linear import LinearPolicy
from wm_agents.cli import app as cli
from wm_agents.evaluation.fidelity import report
from wm_agents.evaluation.fidelity.history import History, _Round
from wm_agents.evaluation.fidelity.measure import QUICK, Fidelity, FidelityConfig, measure
from wm_agents.evaluation.fidelity.report import DATA, PAGE, _write_report, fidelity_report, plain
from wm_agents.evaluation.fidelity.sections import sections
from wm_agents.evaluation.fidelity.temperature import Warmth
from wm_agents.evaluation.subject import Subject, subject_of
from wm_agents.evaluation.variants import RANDOM, SAVED, Contender
from wm_agents.loops.rounds import STAGES
from wm_agents.pretrained import (
    cached_model,
    frame_policy,
    load_model,
    load_policy,
    load_starts,
    real_spec,
    save_model,
    saved_dream,
)
from wm_envs.dream import DreamConfig
from wm_envs.registry import RealSpec

CFG = FidelityConfig(episodes=2, dream_episodes=4, windows=60, horizons=(1, 5), temperatures=(0.5, 1.0))
HISTORY = History("run", [_Round(0, 9.0, 4.0, 1.0, 10), _Round(1, 5.0, 6.0, None, 20)], 150, 5.5, 5.0)
FACTS = {"model": "a<b>", "env": "Line-v0", "config": {"episodes": 2}, "seeds": (1, 2)}
KEYS = (
    "open_loop", "reward", "termination", "calibration", "gap", "ranking", "temperature", "training", "disagreement",
    "determinism",
)  # fmt: skip


def measured(model: Toy, history: History | None = None, **changes: Any) -> Fidelity:
    like = subject(model)._replace(**changes)
    among = [Contender(SAVED), Contender(RANDOM)] if like.policy else None
    return measure(like, playing(model, like.policy), CFG, among=among, history=history)


@pytest.fixture(scope="module")
def found() -> Fidelity:
    return measured(Doubtful(end=END), HISTORY)


@pytest.fixture(scope="module")
def bare() -> Fidelity:
    return measured(Toy(end=1e9), policy=None)


@pytest.fixture(scope="module")
def written(found: Fidelity, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("written")
    _write_report(found, out, FACTS)
    return out


def strict(text: str) -> Any:
    def refuse(name: str) -> None:
        raise ValueError(f"{name} is not JSON")

    return json.loads(text, parse_constant=refuse)


def test_the_page_holds_every_section_and_needs_nothing_else(found: Fidelity, written: Path) -> None:
    page = (written / PAGE).read_text()
    assert [s.key for s in sections(found)] == list(KEYS)
    for section in sections(found):
        assert f'<h2 id="{section.key}">{section.title}</h2>' in page
        assert f'<a href="#{section.key}">' in page
    assert page.count('<p class="summary">') == len(KEYS)
    images = re.findall(r'<img alt="[^"]+" src="data:image/png;base64,([^"]+)"', page)
    assert len(images) == page.count("<img") == len(KEYS) - 1  # Seeds have no plot.
    assert all(base64.b64decode(image).startswith(b"\x89PNG") for image in images)
    assert not re.search(r'(src|href)="(?!data:|#)|<script|<link|@import|url\(', page)
    assert "<h1>Fidelity of a&lt;b&gt;</h1>" in page and "a<b>" not in page
    assert "compared with 4 held-out real episodes (58 steps)" in page
    assert "<td>config</td><td>episodes 2</td>" in page and "<td>seeds</td><td>1, 2</td>" in page


def test_the_json_is_strict_and_holds_every_number(found: Fidelity, written: Path) -> None:
    read = strict((written / DATA).read_text())
    assert {**FACTS, **found._asdict()}.keys() | {"verdicts"} == read.keys()
    assert list(read["verdicts"]) == list(KEYS)
    assert read["gap"] == plain(found.gap) and read["ranking"] == plain(found.ranking)
    assert read["open_loop"]["horizons"][1]["likely"]["rew_corr"] == pytest.approx(1, abs=1e-4)
    assert read["model"] == "a<b>"


def test_what_is_not_a_number_becomes_null() -> None:
    value = {"a": (float("nan"), float("inf")), 3: [np.float64(1 / 3), True, None, 5, "x"]}
    assert plain(value) == {"a": [None, None], "3": [0.333333, True, None, 5, "x"]}
    assert plain(_Round(0, float("nan"), 1.0, None, 10)) == {
        "round": 0, "dream": None, "real": 1.0, "real_std": None, "real_steps": 10
    }  # fmt: skip


def verdicts(found: Fidelity) -> dict[str, str]:
    return {s.key: s.verdict for s in sections(found)}


def test_results_say_what_was_found(found: Fidelity) -> None:
    said = verdicts(found)
    assert said["open_loop"].startswith("Up to 5 steps ahead, dreamed frames are closer to the real ones")
    assert said["reward"].startswith("One step ahead, the correlation of dreamed and real reward is 1;")
    assert (
        "100 % of 2 real terminations are predicted, and 100 % of the predictions are correct (threshold 0.5)"
        in said["termination"]
    )
    assert "100 % less than that of the base rate" in said["calibration"]
    assert re.fullmatch(
        r"Dream return 4.[01] ± 0, real return 4.[01] ± 0: a gap of [+-]0.0, only indicative with 2 real episodes.",
        said["gap"],
    )
    assert said["ranking"] == "The dream orders 2 policies well: rank correlation 1."
    assert said["temperature"] == "The dream return of the saved policy is 4.0 (tau 0.5) to 4.0 (tau 0.5)."
    assert said["training"].startswith(
        "The dream return exceeded the real return in 1 of 2 evaluations; the last gap is -1.0"
    )
    assert said["disagreement"].startswith(
        "One step ahead, the rank correlation of disagreement and frame error is 0.9"
    )
    assert said["determinism"].startswith("The same seed repeats the same dream exactly; row i with seed s equals")


def test_results_own_up_to_what_cannot_be_said(bare: Fidelity) -> None:
    said = verdicts(bare)
    assert said["termination"] == ("No real episode terminated, so the prediction of termination cannot be evaluated.")
    assert "no policy" in said["gap"] and "no policy" in said["temperature"]
    assert "too few policies" in said["ranking"]
    assert "The run has no evaluated rounds" in said["training"]
    assert said["disagreement"] == "The model is not an ensemble."


def test_results_name_failures(found: Fidelity) -> None:
    loop = found.open_loop
    row = loop.horizons[0]
    worse = row._replace(likely=row.likely._replace(obs_mse=9.0))
    changed = found._replace(
        open_loop=loop._replace(horizons=[worse]),
        ranking=found.ranking._replace(spearman=0.3),
        determinism=found.determinism._replace(repeats=False),
        reliability=found.reliability._replace(brier=0.5, now=found.reliability.now._replace(precision=None)),
        gap=found.gap._replace(real_episodes=9, gap=99.0),
    )
    said = verdicts(changed)
    assert (
        said["open_loop"]
        == "Even one step ahead, the dreamed frame is not closer to the real one than a copy of the last frame."
    )
    assert said["ranking"] == "The dream orders 2 policies badly: rank correlation 0.3."
    assert said["determinism"].startswith("The same seed does NOT repeat the same dream")
    assert "not better than that of the base rate" in said["calibration"]
    assert said["termination"] == "One step ahead, no termination is predicted; 2 occurred (threshold 0.5)."
    assert said["gap"].endswith("a gap of +99.0, significant.")
    small = found.gap._replace(real_episodes=9, gap=0.03)
    assert verdicts(found._replace(gap=small))["gap"].endswith("a gap of +0.0, less than 1 %.")
    chance = found.gap._replace(real_episodes=9, gap=-99.0, real_ci95=80.0, dream_ci95=60.0)
    assert verdicts(found._replace(gap=chance))["gap"].endswith("not significant.")


def test_the_page_says_where_ends_are_drawn(found: Fidelity) -> None:
    drawn = found._replace(reliability=found.reliability._replace(drawn=True, best=None))
    by_key, usual = ({s.key: s for s in sections(f)} for f in (drawn, found))
    assert by_key["termination"].verdict.endswith("of the predictions are correct (sampled by the model).")
    assert "The model samples termination" in by_key["termination"].note
    assert by_key["calibration"].note.endswith("Termination is sampled with these probabilities.")
    for key, words in (
        ("termination", "The best threshold for these episodes"),
        ("calibration", "the calibrated threshold corrects"),
    ):
        assert words in usual[key].note and words not in by_key[key].note


def test_a_controller_trained_at_a_temperature_is_in_the_table_and_the_plot(found: Fidelity) -> None:
    rows = [Warmth(0.5, 1.0, 0.1, 0.1, 7.0, 2.0, 0.5), Warmth(1.0, 2.0, 0.1, 0.1, 6.0, 3.5, 0.5)]
    section = next(s for s in sections(found._replace(temperatures=rows)) if s.key == "temperature")
    assert section.verdict.endswith(
        "Of the controllers trained at a fixed temperature, tau 1.0 scores best in the real environment: 3.5."
    )
    real = section.rows[0][3]
    assert float(real) == pytest.approx(4.05, abs=0.06)
    assert section.rows[0] == ["0.5", "1.0", "0.1", real, "7", "2", "0.5"]
    assert len(section.head) == len(section.rows[0])
    labels = [text.get_text() for text in section.plot.axes[0].get_legend().get_texts()]
    assert "trained there, real" in labels


def test_a_page_without_policy_or_ends_is_written_too(bare: Fidelity, tmp_path: Path) -> None:
    result = _write_report(bare, tmp_path, FACTS)
    assert strict((tmp_path / DATA).read_text()) == result
    assert (result["gap"], result["history"]) == (None, None)
    assert "<h2" in (tmp_path / PAGE).read_text()


def test_every_row_of_a_table_is_as_wide_as_its_head(found: Fidelity, bare: Fidelity) -> None:
    for section in (*sections(found), *sections(bare)):
        assert all(len(row) == len(section.head) for row in section.rows), section.key


@pytest.fixture(scope="module")
def pole(tmp_path_factory: pytest.TempPathFactory) -> str:
    run = tmp_path_factory.mktemp("runs")
    rounds = {"0": {STAGES[2]: {"dream": 5.0}, STAGES[3]: {"real": 2.0, "std": 1.0, "steps": 10}}}
    (run / "state.json").write_text(json.dumps({"history": rounds}))
    return save_tiny(run / "model", RealSpec("CartPole-v1", max_episode_steps=30), horizon=30)


def test_a_saved_model_is_measured_from_end_to_end(
    pole: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(report, "QUICK", FidelityConfig(1, 8, 4, 40, (1, 5), temperatures=(1.0,), longest_episode=6))
    console = Console(stderr=True, width=200)
    result = fidelity_report(pole, tmp_path / "out", procs=0, quick=True, console=console)
    assert strict((tmp_path / "out" / DATA).read_text()) == result
    assert (tmp_path / "out" / PAGE).is_file()
    assert (result["env"], result["real_episodes"], len(result["ranking"]["policies"])) == ("CartPole-v1", 8, 8)
    assert result["real_steps"] == 8 * 6  # No pole falls within six steps.
    assert result["determinism"]["repeats"] is True
    assert result["history"]["rounds"][0]["dream"] == 5.0  # The run that the model lies in.
    assert result["config"]["episodes"] == 1 and result["wall_s"] > 0
    out, err = capsys.readouterr()
    assert out == "" and "real episodes 8/8" in err and "dreams 4/4" in err
    assert "Order of policies" in err and result["verdicts"]["ranking"] in err


def test_a_shipped_model_shows_the_course_of_its_training(
    pole: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tmp_path / "shipped"
    shutil.copytree(pole, model)
    config = json.loads((model / "config.json").read_text())
    rounds = [{"round": 0, "dream": 9.0, "real": 4.0}, {"round": 2, "dream": 5.0, "real": 6.0}]
    (model / "config.json").write_text(json.dumps({**config, "rounds": rounds}))
    seen: dict[str, Any] = {}
    monkeypatch.setattr(report, "measure", lambda *args, **kwargs: seen.update(kwargs) or found_nothing())
    with pytest.raises(InterruptedError):
        fidelity_report(str(model), tmp_path / "out")
    assert seen["history"].rounds == [_Round(0, 9.0, 4.0, None, None), _Round(2, 5.0, 6.0, None, None)]


def found_nothing() -> Fidelity:
    raise InterruptedError


def test_a_rewritten_model_is_measured_as_it_is_now(pole: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tmp_path / "rewritten"
    shutil.copytree(pole, model)
    net, before = cached_model(str(model))
    policy = load_policy(net, before)
    other = LinearPolicy(net.act_space, policy.weights + 1)
    save_model(model, net, real_spec(before), load_starts(before), horizon=30, card="", policy=other)
    acting = []

    def measure(like: Subject, *args: Any, **kwargs: Any) -> Fidelity:
        acting.extend([like.policy, frame_policy(str(model)).controller])  # In dreams, and for real.
        return found_nothing()

    monkeypatch.setattr(report, "measure", measure)
    with pytest.raises(InterruptedError):
        fidelity_report(str(model), tmp_path / "out")
    for policy in acting:
        np.testing.assert_array_equal(policy.weights, other.weights)


def test_rounds_without_steps_recorded_are_shown(found: Fidelity) -> None:
    told = History("config.json", [_Round(0, 9.0, 4.0, None, None)], None, None, None)
    section = next(s for s in sections(found._replace(history=told)) if s.key == "training")
    assert section.rows == [["0", "–", "9.0", "4.0", "–", "+5.0"]]
    assert "in dreams of another length (" not in section.note


def test_the_cut_off_temperature_and_horizon_are_the_artifact_s(pole: str) -> None:
    net, artifact = load_model(pole)
    artifact.config.update(cut_off=0.25, temperature=1.15, horizon=7)
    like = subject_of(saved_dream(net, artifact))
    assert like.dream == DreamConfig(1.15, 7, cut_off=0.25)


def test_a_run_folder_that_is_none_is_rejected_before_anything_is_played(pole: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="run must be a folder of `wm improve` with an evaluated round, got"):
        fidelity_report(pole, tmp_path / "out", run=tmp_path)
    with pytest.raises(ValueError, match="seed must be at least 1,000,000"):
        fidelity_report(pole, tmp_path / "out", seed=5)


def test_quick_is_a_first_look() -> None:
    assert QUICK.episodes == 1 and QUICK.policies == 8
    assert QUICK.windows < FidelityConfig().windows and QUICK.dream_episodes < FidelityConfig().dream_episodes


def test_the_command_passes_its_flags_on(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    seen: dict[str, Any] = {}

    def fake(*args: Any, **kwargs: Any) -> dict[str, Any]:
        seen.update(kwargs, args=args)
        return {"gap": None}

    monkeypatch.setattr(report, "fidelity_report", fake)
    flags = (
        "--out o --episodes 3 --seed 1000005 --procs 1 --quick --train_temperatures [0.7,1.3] --generations 9 --run r"
    )
    assert cli.main(["fidelity", "m", *flags.split()]) == 0
    assert seen["args"] == ("m", Path("o"))
    want = {"episodes": 3, "seed": 1_000_005, "procs": 1, "quick": True, "generations": 9, "run": Path("r")}
    assert seen.items() >= {**want, "train_temperatures": (0.7, 1.3)}.items()
    assert capsys.readouterr().out == "o/fidelity.html, o/fidelity.json\n"
    assert cli.main(["fidelity", "m", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"gap": None}
    assert (seen["episodes"], seen["quick"], seen["run"], seen["train_temperatures"]) == (None, False, None, ())
