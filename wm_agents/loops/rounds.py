"""The improvement loop: collect, fit the model, train the controller, evaluate; in rounds.

A dream is accurate only where its data are. So each round collects with the current controller in the real
environment, refits the model on all data and trains the controller in the new dream. Every stage is
resumable: the same command resumes a killed run.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from policies.cmaes import Generation
from policies.linear import LinearPolicy
from policies.mlp import MLPPolicy, mean_mlp
from policies.policy import explorer
from policies.step_count import StepCount
from wm_agents.control.evolve import controller_at, evolve_in_dream
from wm_agents.control.ppo import Iteration, ppo_in_dream
from wm_agents.data.collect import CollectConfig, MakePolicy, collect
from wm_agents.data.dataset import Dataset
from wm_agents.data.live import LIVE, LiveView
from wm_agents.evaluation.evaluate import evaluate_dream, evaluate_real
from wm_agents.evaluation.exploit import exploit_warning
from wm_agents.factory import Model
from wm_agents.loops.budget import duration, plan_of, summary_of
from wm_agents.loops.finish import Candidate, Story, deliver
from wm_agents.loops.fit import RoundData, fit, new_model
from wm_agents.loops.preflight import check_training
from wm_agents.loops.recipes import ImproveConfig
from wm_agents.loops.seeds import JUDGE_SEED, kept_env_seed
from wm_agents.models.saved import load_model
from wm_agents.pretrained import Controller, explore_with, frame_policy, load_dream, load_policy, save_model
from wm_agents.strips import STRIPS
from wm_agents.system.extras import extra
from wm_agents.system.hardware import memory_gb
from wm_agents.system.run_folder import STEPS, RunFolder, start_run
from wm_agents.training.callbacks import Callback, LoggingCallback, ProgressCallback
from wm_agents.video import record
from wm_envs.real import probe
from wm_envs.world_model import Latent

STAGES = ("collect", "learn", "control", "judge")
MEAN = "mean"
"""The model of a round with the mean controller of the last rounds."""
FILMED = 1000
"""Maximum frames of the video of a round; they count as real steps."""
# All other settings may change between rounds; run.json records when.
FIXED = {"spec", "random_steps", "squash", "family", "controller"}


class Check(NamedTuple):
    """A controller during its training, for a callback."""

    generation: int
    """Generations (PPO: iterations) so far, over all rounds."""
    round: int
    model: Path
    """A model directory with this controller."""
    dream_return: float
    real_steps: int
    """Agent steps in the real environment so far."""
    wall_s: dict[str, float]
    """Seconds in each stage so far."""


OnCheck = Callable[[Check], bool]
"""Called every `check_every` generations; returns True to end the run with this controller."""
Rounds = list[dict[str, float]]
"""Dream and real returns, in the format of `wm_agents.evaluation.fidelity.history.told_history`."""


class Improvement:
    """The loop, with one method per stage."""

    def __init__(
        self,
        cfg: ImproveConfig,
        run: RunFolder,
        console: Console,
        on_check: OnCheck | None = None,
        looks: Callable[[], Rounds] | None = None,
    ) -> None:
        self.cfg, self.run, self.console, self.on_check, self.looks = cfg, run, console, on_check, looks
        self.data_dir = run.path / "data"
        self.round: int = run.state.get("round", 0)
        self.stage: str = run.state.get("stage", STAGES[0])
        self.stopped: bool = run.state.get("stopped", False)
        self.count = StepCount(run.path / STEPS, start=self._real_steps())
        self.plan = plan_of(cfg, run)
        self.began = time.perf_counter()

    def loop(self) -> None:
        """Run the remaining stages, and record the end of each."""
        self.run.update(limits={"rounds": self.cfg.rounds, "data_gb": self.cfg.max_gb})
        while self.round < self.cfg.rounds and not self.stopped:
            if not self._has_time():
                self.console.print(f"the budget allows {self.round} rounds; the run ends")
                return
            self.began = time.perf_counter()
            self.console.print(f"round {self.round} of {self.cfg.rounds}: {self.stage}{self._time_left()}")
            facts = getattr(self, self.stage)()
            facts["wall_s"] = time.perf_counter() - self.began
            if taken := self.count.value - self._real_steps():
                facts["steps"] = taken  # Also those of a start that was killed in this stage.
            self._note(facts)

    def collect(self) -> dict[str, float]:
        """Collect real episodes: exploration in the first round, then the current controller with noise."""
        cfg = self.cfg
        steps: int = cfg.random_steps
        driver: MakePolicy = explorer
        if self.round:
            last = str(self._dir(self.round - 1) / "model")
            steps = cfg.round_steps
            leave_by = min(cfg.horizon, probe(cfg.spec).limit or cfg.horizon)
            driver = partial(explore_with, last, cfg.noise, cfg.leave, leave_by, draw_actions=cfg.draw_actions)
        summary = collect(
            CollectConfig(
                cfg.spec,
                str(self.data_dir),
                steps=steps,
                seed=cfg.first_env_seed + self.round * cfg.round_seeds,
                procs=cfg.workers,
                shard_episodes=cfg.shard_episodes,
                stall=cfg.stall,
                max_steps=cfg.max_steps,
                max_gb=cfg.max_gb,
                live=LiveView(self.run.path / LIVE, cfg.live_fps),
            ),
            driver,
            console=self.console,
            count=self.count,
        )
        if summary.stopped == "interrupted":
            raise KeyboardInterrupt
        if not summary.returns:
            raise ValueError(
                f"nothing was collected ({summary.stopped}); raise max_gb ({cfg.max_gb}) or free disk space"
            )
        if summary.stopped != "done":
            self.console.print(f"  collection stopped after {summary.steps} steps: {summary.stopped}")
        return {"return": float(np.mean(summary.returns))}

    def learn(self) -> dict[str, float]:
        """Fit the model to all data, and compute initial latents."""
        model = self._last_model()
        round_data = RoundData(self.cfg, Dataset(self.data_dir), self.round, self._dir(), self._callbacks)
        learned = fit(model, round_data)
        self._save(self._dir() / "model", model, learned.starts, learned.cut_off)
        return {f"val_{part}": value for part, value in learned.val.items()} | {"cut_off": learned.cut_off}

    def control(self) -> dict[str, float]:
        """Train the controller in the dream, starting from the controller of the previous round."""
        cfg, saved = self.cfg, load_dream(self._dir() / "model")
        model, starts, dream = saved.model, saved.starts, cfg.dream(saved.bounded)
        save = partial(self._save, self._dir() / "model", model, starts, saved.dream.cut_off)
        policy: Controller
        if cfg.controller == "ppo":

            def look(iteration: Iteration) -> bool:
                return self._look(save, iteration.policy, iteration)

            before = None
            if self.round:
                before = self._dir(self.round - 1) / "ppo.safetensors"
            state = self._dir() / "ppo.safetensors"
            last = ppo_in_dream(
                model, starts, cfg.ppo, dream, state=state, before=before, on_iteration=look, start="anywhere"
            )
            policy, dream_return = last.policy, last.mean
        else:

            def see(generation: Generation) -> bool:
                policy = controller_at(generation.weights, model, cfg.squash)
                return self._look(save, policy, generation)

            state = self._dir() / "evolution.json"
            evolved = evolve_in_dream(
                model,
                starts,
                cfg.cma,
                dream,
                x0=self._last_mean(),
                squash=cfg.squash,
                state=state,
                on_generation=see,
            )
            policy, dream_return = evolved.policy, evolved.dream_return
        save(policy)
        if np.isfinite(dream_return):
            return {"dream": dream_return}
        return {}

    def judge(self) -> dict[str, float]:
        """Evaluate the controller in the real environment, on seeds for model selection, and in whole dreams.

        A warning is printed if the dream return is far above the real return.
        """
        if not self.cfg.is_judged(self.round):
            return {}
        candidate = self._candidate(self.round)
        seeds = range(JUDGE_SEED, JUDGE_SEED + self.cfg.judge_episodes)
        score = evaluate_real(
            self.cfg.spec,
            partial(frame_policy, str(candidate)),
            list(seeds),
            self.cfg.workers,
            count=self.count,
        )
        saved = load_dream(candidate)
        policy = saved.policy
        dream = evaluate_dream(
            saved.model, saved.starts, policy, saved.dream, episodes=self.cfg.judge_episodes, seed=JUDGE_SEED
        )
        self.console.print(f"  real return {score}, dream return {dream.mean:.1f}")
        if warning := exploit_warning(dream, score):
            self.console.print(f"  {warning}", soft_wrap=True, highlight=False)
        with extra("the video of this round", self.console):
            record(
                self._dir() / "real_vs_dream.mp4",
                self.cfg.spec,
                saved.model,
                policy,
                saved.dream,
                seed=JUDGE_SEED,
                max_frames=FILMED,
                count=self.count,
                strips=self._dir() / STRIPS,
            )
        return {
            "real": score.mean,
            "std": score.std,
            "ci95": score.ci95,
            "episodes": len(score.returns),
            "dream": dream.mean,
            "dream_std": dream.std,
        }

    def finish(self) -> dict[str, Any]:
        """Select the round with the best evaluation, and save and score it: see `finish.deliver`."""
        history = self.run.state["history"]
        # Without an evaluation, the last round is selected.
        verdicts = {index: stages.get("judge", {}) for index, stages in history.items()}
        # Compare only the evaluations with the most episodes, because means of fewer vary more.
        most = max(verdict.get("episodes", 0) for verdict in verdicts.values())
        judged = {index: verdict.get("real") for index, verdict in verdicts.items()}
        scored = {i: real for i, real in judged.items() if real is not None and verdicts[i].get("episodes", 0) == most}
        rounds = [
            {
                "round": int(index),
                "dream": history[index]["control"]["dream"],
                "real": real,
                "std": verdicts[index]["std"],
                "real_steps": self._real_steps(int(index)),
            }
            for index, real in judged.items()
            if real is not None and "dream" in history[index].get("control", {})
        ]
        if self.stopped or not scored:
            best = int(max(judged, key=int))
        else:
            best = int(max(scored, key=lambda index: scored[index]))
        saved = load_dream(self._candidate(best))
        told = rounds
        if self.looks is not None:
            told = self.looks()
        chosen = Candidate(saved.model, saved.policy, self.cfg.spec, saved.starts, saved.dream.cut_off, told)
        return deliver(
            self.run.path,
            chosen,
            self._story(best, history),
            episodes=self.cfg.final_episodes,
            procs=self.cfg.workers,
            console=self.console,
            report_minutes=self.cfg.report_minutes,
        )

    def _story(self, best: int, history: dict[str, Any]) -> Story:
        chosen = f"round {best}, the last one"
        if self.cfg.judge_episodes > 0 and not self.stopped:
            chosen = f"round {best}, selected on seeds from {JUDGE_SEED}"
        if self.cfg.mean_rounds > 1:
            chosen += f"; mean of the last {self.cfg.mean_rounds} controllers"
        stages = [stage for stages in history.values() for stage in stages.values()]
        seeds = f"seeds from {self.cfg.first_env_seed}, for evaluation from {JUDGE_SEED}"
        return Story(
            data=f"including evaluation of rounds; {seeds}",
            training=f"{len(history)} rounds; {chosen}",
            text="The controller was trained only in dreams.",
            real_steps=self._real_steps(),
            train_wall_s=sum(stage["wall_s"] for stage in stages),
            result={"round": best},
            summary={"rounds": history, **summary_of(self.plan)},
        )

    def _note(self, facts: dict[str, float]) -> None:
        """Record the facts of a stage and continue with the next."""
        values = {f"{self.stage}/{name}": value for name, value in facts.items()} | memory_gb()
        if self.stage == "collect" and "steps" in facts:
            values["speed/real_steps_per_s"] = facts["steps"] / facts["wall_s"]
        self.run.metrics(self.round, values)
        history = {**self.run.state.get("history", {})}
        history.setdefault(str(self.round), {})[self.stage] = facts
        if self.stage == STAGES[-1]:
            self.round, self.stage = self.round + 1, STAGES[0]
        else:
            self.stage = STAGES[STAGES.index(self.stage) + 1]
        self.run.update(round=self.round, stage=self.stage, history=history)

    def _look(self, save: Callable[[Controller], None], policy: Controller, now: Generation | Iteration) -> bool:
        """Report the progress of the controller and call `on_check`; True ends its training."""
        done = self.round * self.cfg.generations + now.number
        values = {"dream/return": now.mean, "speed/generation_s": now.wall_s}
        self.run.metrics(done, {name: value for name, value in values.items() if np.isfinite(value)})
        if now.number % 10 == 0:
            what = "generation"
            if self.cfg.controller == "ppo":
                what = "iteration"
            done_of = f"{what} {now.number}/{self.cfg.generations}"
            self.console.print(f"  {done_of}: dream return {now.mean:.1f}, {now.wall_s:.2f} s each")
        if self.on_check is None or self.cfg.check_every is None or done % self.cfg.check_every:
            return False
        save(policy)
        stages = [stage for stages in self.run.state["history"].values() for stage in stages.items()]
        wall_s = {name: sum(facts["wall_s"] for other, facts in stages if other == name) for name in STAGES}
        wall_s["control"] += time.perf_counter() - self.began
        check = Check(done, self.round, self._candidate(self.round), now.mean, self._real_steps(), wall_s)
        self.stopped = self.on_check(check)
        if self.stopped:
            self.run.update(stopped=True)
        return self.stopped

    def _save(
        self, path: Path, model: Model, starts: dict[str, Latent], cut_off: float, policy: Controller | None = None
    ) -> None:
        horizon = probe(self.cfg.spec).limit
        save_model(path, model, self.cfg.spec, starts, horizon=horizon, cut_off=cut_off, card="", policy=policy)

    def _real_steps(self, last: int | None = None) -> int:
        """Agent steps in the real environment so far, or up to the end of round `last`."""
        history = self.run.state.get("history", {})
        rounds = [stages for index, stages in history.items() if last is None or int(index) <= last]
        return sum(int(stage.get("steps", 0)) for stages in rounds for stage in stages.values())

    def _round_times(self) -> list[float]:
        """Seconds of each finished round."""
        history = self.run.state.get("history", {})
        return [sum(stage["wall_s"] for stage in history[str(index)].values()) for index in range(self.round)]

    def _has_time(self) -> bool:
        """Whether the next round fits in the budget; a round that has begun is finished."""
        if self.plan is None or self.stage != STAGES[0] or self.round == 0:
            return True
        return self.plan.has_time(self._round_times())

    def _time_left(self) -> str:
        """The expected rest of the time as text, at the start of a round; empty if nothing is known of it."""
        done_s, to_go = self._round_times(), self.cfg.rounds - self.round
        if self.stage != STAGES[0] or (self.plan is None and not done_s):
            return ""
        if self.plan is not None:
            return f", about {duration(self.plan.left_s(done_s, to_go))} left"
        return f", about {duration(to_go * sum(done_s) / len(done_s))} left, and the score"

    def _dir(self, index: int | None = None) -> Path:
        if index is None:
            index = self.round
        return self.run.path / f"round-{index:02d}"

    def _last_model(self) -> Model:
        """The model of the previous round, or a new one."""
        if self.round == 0:
            return new_model(self.cfg, *probe(self.cfg.spec).spaces)
        return load_model(self._dir(self.round - 1) / "model")[0]

    def _candidate(self, last: int) -> Path:
        """The model directory of round `last` that is evaluated and delivered: with its own controller, or with the
        mean of the last `mean_rounds` controllers."""
        if self.cfg.mean_rounds == 1:
            return self._dir(last) / "model"
        rounds = range(max(0, last + 1 - self.cfg.mean_rounds), last + 1)
        trained = [load_dream(self._dir(index) / "model").policy for index in rounds]
        saved, path = load_dream(self._dir(last) / "model"), self._dir(last) / MEAN
        mean = mean_mlp([policy for policy in trained if isinstance(policy, MLPPolicy)])
        self._save(path, saved.model, saved.starts, saved.dream.cut_off, mean)
        return path

    def _last_mean(self) -> NDArray[np.float64] | None:
        if self.round == 0:
            return None
        policy = load_policy(*load_model(self._dir(self.round - 1) / "model"), kind="linear")
        assert isinstance(policy, LinearPolicy)
        return policy.weights.ravel().astype(np.float64)

    def _callbacks(self, name: str) -> tuple[Callback, ...]:
        return LoggingCallback(), ProgressCallback(f"round {self.round} {name}", self.console)


def improve(
    cfg: ImproveConfig,
    console: Console | None = None,
    on_check: OnCheck | None = None,
    looks: Callable[[], Rounds] | None = None,
) -> dict[str, Any]:
    """Run or resume the loop in the folder `cfg.out` and return the final scores.

    Args:
        on_check: called every `cfg.check_every` generations with the controller; may end the run.
        looks: returns the dream and real returns found by `on_check`, for the fidelity report, instead of the
            rounds.
    """
    console = console or Console(stderr=True)
    check_training(cfg)
    if cfg.env_seed is None:
        cfg = replace(cfg, env_seed=kept_env_seed(Path(cfg.out), cfg.seed))
    settings = cfg.to_dict()
    seeds = {"run": cfg.seed, "collect": cfg.first_env_seed, "judge": JUDGE_SEED}
    with start_run(cfg.out, settings, seeds, may_change=set(settings) - FIXED) as run:
        improvement = start(cfg, run, console, on_check, looks)
        improvement.loop()
        return improvement.finish()


def start(
    cfg: ImproveConfig,
    run: RunFolder,
    console: Console,
    on_check: OnCheck | None = None,
    looks: Callable[[], Rounds] | None = None,
) -> Improvement:
    """The loop in an open run folder, with the settings that fit in the budget of `cfg`."""
    from wm_agents.loops.budget_rounds import planned  # Its trial is a round of this loop.

    count = StepCount(run.path / STEPS)
    return Improvement(planned(cfg, run, count, console), run, console, on_check, looks)
