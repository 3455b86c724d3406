"""The commands of `wm`: thin functions whose arguments are the flags and whose docstrings are the help."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

from rich.console import Console

from policies.cmaes import CMAConfig
from policies.policy import explorer
from policies.pool import Procs
from policies.ray_pool import workers_of
from policies.rollout import EVAL_SEED
from wm_agents.checkpoint import Artifact
from wm_agents.cli.demo import run_demo
from wm_agents.cli.flags import Parser, about, flat, value_of
from wm_agents.cli.printing import print_json
from wm_agents.cli.web import SHOW_DASHBOARD, dashboard_of
from wm_agents.data.collect import CollectConfig
from wm_agents.data.collect import collect as collect_episodes
from wm_agents.errors import did_you_mean
from wm_agents.evaluation.evaluate import evaluate as judge
from wm_agents.loops.evolve_saved import evolve_artifact
from wm_agents.loops.online import online as learn_online
from wm_agents.loops.online_config import OnlineConfig, online_recipe, seen_by
from wm_agents.loops.recipes import RECIPES, ImproveConfig, recipe_for
from wm_agents.loops.rounds import improve as improve_rounds
from wm_agents.loops.transfer import lines_of as transfer_lines
from wm_agents.loops.transfer import transfer as transfer_policies
from wm_agents.models.families import FAMILIES, names
from wm_agents.pretrained import explore_with, load_dream, real_spec
from wm_agents.project.schema import VisualizationSection
from wm_agents.video import record
from wm_envs.real import limited, probe, spec_for
from wm_envs.registry import TASKS, RealSpec

console = Console(stderr=True)


def improve(cfg: ImproveConfig | OnlineConfig, dashboard: bool = False) -> None:
    """Collect real episodes, train a model, train a controller in its dream, evaluate it, and repeat.

    Choose an environment: `--env ID` uses default settings, `--task NAME` uses settings tuned for this task. All
    other flags override these settings. The families vmc, ensemble and objects are trained in rounds, with the flags
    below. `--family dreamerv3` and `--family tdmpc2` are trained online, with updates between real steps; for their
    flags see `wm improve --family dreamerv3 --help`. The same command resumes an interrupted run.
    """
    with dashboard_of(cfg.out, VisualizationSection(dashboard=dashboard)):
        if isinstance(cfg, OnlineConfig):
            learn_online(cfg, console)
        else:
            improve_rounds(cfg, console)


def collect(
    out: str,
    spec: RealSpec,
    steps: int = 10_000,
    seed: int = 1,
    procs: int | None = None,
    ray: str | None = None,
    policy: str | None = None,
    noise: tuple[float, ...] = (0.0, 0.3, 0.6),
    leave: float = 0.0,
    leave_by: int = 300,
    stall: int | None = None,
    max_steps: int | None = None,
    max_gb: float = 5.0,
    as_json: bool = False,
) -> None:
    """Record whole episodes of a real environment, eight per file. The same command resumes.

    Args:
        out: directory of the dataset.
        spec: the environment, as in `--spec.id CarRacing-v3 --spec.size 64`.
        steps: number of agent steps to collect.
        seed: environment seed of the first episode; all seeds must stay below 1,000,000.
        procs: number of workers; default: 2 processes, or all cores of the Ray cluster.
        ray: a Ray cluster whose cores are the workers: auto, HOST:PORT or local; see docs/scaling.md.
        policy: a model directory whose controller acts; default: exploration policies.
        noise: noise levels for that controller, one drawn per episode, as in `[0.0,0.3]`.
        leave: share of that controller's episodes in which random actions take over until the end.
        leave_by: random actions take over within the first N steps.
        stall: truncate an episode after N steps without a positive reward.
        max_steps: truncate an episode after N steps; default: never, or after `steps` if the environment has no limit.
        max_gb: maximum size of the dataset on disk.
        as_json: print one JSON object on stdout.
    """
    cfg = CollectConfig(spec, out, steps, seed, workers_of(procs, ray), stall=stall, max_steps=max_steps, max_gb=max_gb)
    make = explorer if policy is None else partial(explore_with, policy, noise, leave, leave_by)
    summary = collect_episodes(cfg, make, console=console)
    if as_json:
        print_json(summary._replace(returns=[])._asdict())
    else:
        print(
            f"{out}: {summary.episodes:,} episodes with {summary.steps:,} steps ({summary.new_steps:,} new; "
            f"{summary.taken:,} taken so far, with those of interrupted shards), "
            f"{summary.bytes / 1e6:.1f} MB, {summary.wall_s:.0f} s"
        )
    if summary.stopped == "interrupted":
        raise KeyboardInterrupt
    if summary.stopped != "done":
        raise RuntimeError(
            f"stopped by {summary.stopped} at {summary.steps:,} of {steps:,} steps; the data in {out} are usable. "
            "Free disk space or raise max_gb, then run the same command to resume"
        )


def evolve(
    model: str,
    out: str,
    where: Literal["dream", "real"] = "dream",
    cma: CMAConfig = CMAConfig(),  # noqa: B008
    horizon: int | None = None,
    temperature: float | None = None,
    stall: int | None = None,
    squash: tuple[str, ...] | None = None,
    seed: int | None = None,
    procs: int | None = None,
    ray: str | None = None,
) -> None:
    """Train a linear controller on a model's latents with CMA-ES, and save it with the model.

    The same command resumes an interrupted run.

    Args:
        model: a model directory, or the name of a shipped model or dream.
        out: directory of the new model; `<out>.run` contains the state for resuming.
        where: train in the dream or in the real environment.
        cma: settings of CMA-ES.
        horizon: steps of a dream, at most the limit of the environment, which is the default (150 without a limit).
            Not for real episodes.
        temperature: randomness of the dream; default: the model's own.
        stall: truncate a dream after N steps without a positive reward (8 for the shipped CarRacing dream).
        squash: how outputs are mapped to the action bounds: tanh, sigmoid or clip for each dimension, as in
            `'["tanh", "clip"]'`; default: as in the model's own controller, or in the recipe of its task.
        seed: random seed, in place of `--cma.seed`.
        procs: number of workers; default: 2 processes for real episodes, this process for dreams, or all cores of the
            Ray cluster.
        ray: a Ray cluster whose cores are the workers: auto, HOST:PORT or local; see docs/scaling.md.
    """
    saved = load_dream(model)
    own, given = saved.bounded, {"temperature": temperature, "stall": stall}
    changes: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    wanted, limit = horizon or own.horizon or 150, probe(saved.spec).limit
    if seed is not None:
        cma = replace(cma, seed=seed)
    workers: Procs = 0
    if (where, procs, ray) != ("dream", None, None):
        workers = workers_of(procs, ray)
    evolve_artifact(
        model,
        Path(out),
        cma,
        where=where,
        dream=replace(own, **changes, horizon=min(wanted, limit or wanted)),
        squash=squash or usual_squash(saved.artifact),
        procs=workers,
        console=console,
    )
    console.print(f"saved {out}; score it with `wm evaluate {out}`")


def transfer(
    model: str,
    out: str | None = None,
    policies: int = 5,
    seed: int = 1,
    algo: Literal["recipe", "ppo", "linear"] = "recipe",
    iterations: int | None = None,
    episodes: int = 100,
    procs: int = 2,
    as_json: bool = False,
) -> int:
    """Train new controllers in a model's frozen dream, and score each in the real environment.

    This measures how well a dream teaches: the model is not trained further, and the last state of each controller
    is scored, without selection by real episodes. The same command resumes an interrupted run. Exit code 1: a
    policy failed; the same command tries it again.

    Args:
        model: a model directory, or the name of a shipped model or dream.
        out: run folder; default: runs/transfer/<model>.
        policies: number of controllers, each trained from scratch with its own seed.
        seed: seed of the first controller; the others follow at a distance of 10,000.
        algo: ppo, linear (a linear controller by CMA-ES), or that of the recipe of the task.
        iterations: iterations of PPO or generations of CMA-ES; default: those of all rounds of the recipe, but at
            most 20 million dreamed steps and at least one round.
        episodes: held-out real episodes for the score of each controller.
        procs: number of worker processes for real episodes.
        as_json: print the content of transfer.json on stdout.
    """
    folder = Path(out or f"runs/transfer/{Path(model).name}")
    result = transfer_policies(
        model,
        folder,
        policies=policies,
        seed=seed,
        algo=algo,
        iterations=iterations,
        episodes=episodes,
        procs=procs,
        console=console,
    )
    if as_json:
        print_json(result)
    else:
        print("\n".join(transfer_lines(result)))
        print(f"protocol: {result['protocol']}")
        print(f"all returns: {folder / 'transfer.json'}")
    return 1 if result["real"]["failed"] else 0


def evaluate(
    model: str,
    episodes: int = 100,
    seed: int = EVAL_SEED,
    procs: int | None = None,
    ray: str | None = None,
    both_protocols: bool = False,
    as_json: bool = False,
) -> None:
    """Score a model's policy on held-out real episodes and in its dream.

    Args:
        model: a model directory, or the name of a shipped model or dream.
        episodes: number of real episodes, and of dreamed ones.
        seed: first environment seed, at least 1,000,000.
        procs: number of workers; default: 2 processes, or all cores of the Ray cluster.
        ray: a Ray cluster whose cores are the workers: auto, HOST:PORT or local; see docs/scaling.md.
        both_protocols: also score an ALE game without sticky actions, as most published Atari-100k scores are.
        as_json: print one JSON object on stdout.
    """
    result = judge(
        model,
        episodes=episodes,
        seed=seed,
        procs=workers_of(procs, ray),
        both_protocols=both_protocols,
        console=console,
    )
    if as_json:
        print_json(result)
        return
    for where in ("real", "dream"):
        score = result[where]
        print(f"{where:<6} {score['mean']:.1f} ± {score['std']:.1f} (95 % CI of the mean: ± {score['ci95']:.1f})")
    print(f"gap    {result['gap']:.1f} over {episodes} episodes, seeds from {seed}; {result['wall_s']} s")
    print(f"protocol: {result['protocol']}")
    if "real_without_sticky" in result:
        other = result["real_without_sticky"]
        print(f"real   {other['mean']:.1f} ± {other['std']:.1f} (95 % CI of the mean: ± {other['ci95']:.1f})")
        print(f"protocol: {other['protocol']}")
    if result.get("degraded_modes"):
        print(f"DEGRADED: {', '.join(result['degraded_modes'])}: the model was not trained on this environment")


def fidelity(
    model: str,
    out: str = "outputs/fidelity",
    episodes: int | None = None,
    seed: int = EVAL_SEED,
    procs: int | None = None,
    ray: str | None = None,
    quick: bool = False,
    train_temperatures: tuple[float, ...] = (),
    generations: int = 60,
    run: str | None = None,
    as_json: bool = False,
) -> None:
    """Measure how closely a model's dream matches reality: frames, rewards, termination, returns, policies.

    Args:
        model: a model directory, or the name of a shipped model or dream.
        out: folder for fidelity.html and fidelity.json.
        episodes: real episodes of each policy; default: 8, or 1 with --quick.
        seed: first environment seed, at least 1,000,000.
        procs: number of workers; default: 2 processes, or all cores of the Ray cluster.
        ray: a Ray cluster whose cores are the workers: auto, HOST:PORT or local; see docs/scaling.md.
        quick: eight policies and fewer dreams; takes about a minute.
        train_temperatures: also train controllers in dreams of these temperatures and score them in the real
            environment, as in `[0.7,1.3]`.
        generations: CMA-ES generations for each of these controllers.
        run: the run folder of the model; default: the folder that contains it.
        as_json: print the content of fidelity.json on stdout.
    """
    from wm_agents.evaluation.fidelity.report import (  # Matplotlib would slow every command's start.
        DATA,
        PAGE,
        fidelity_report,
    )

    result = fidelity_report(
        model,
        Path(out),
        episodes=episodes,
        procs=workers_of(procs, ray),
        quick=quick,
        seed=seed,
        train_temperatures=train_temperatures,
        generations=generations,
        run=None if run is None else Path(run),
        console=console,
    )
    if as_json:
        print_json(result)
    else:
        print(f"{Path(out) / PAGE}, {Path(out) / DATA}")


def video(model: str, out: str = "real_vs_dream.mp4", seed: int = EVAL_SEED, resync_every: int | None = 50) -> None:
    """Record a video of a real episode beside its dream under the same actions.

    Args:
        model: a model directory, or the name of a shipped model or dream.
        out: path of the mp4.
        seed: seed of the real environment.
        resync_every: re-synchronise the dream with the real frame every N steps; null: never.
    """
    saved = load_dream(model)
    frames = record(Path(out), saved.spec, saved.model, saved.policy, saved.dream, seed=seed, resync_every=resync_every)
    print(f"{out}: {frames} frames")


def demo(out: str = "outputs/demo", generations: int = 60, episodes: int = 8, procs: int = 2) -> None:
    """Train a controller in Dream-CarRacing-v0, drive the real CarRacing-v3 with it, and record a video.

    Args:
        out: folder for summary.json and real_vs_dream.mp4.
        generations: CMA-ES generations in the dream.
        episodes: real episodes that the controller is evaluated on.
        procs: number of worker processes for real episodes.
    """
    summary = run_demo(Path(out), generations=generations, episodes=episodes, procs=procs, console=console)
    print(json.dumps(summary, indent=2))


def usual_squash(artifact: Artifact) -> tuple[str, ...] | None:
    """The squashing functions of the artifact's controller, or else of the recipe of its task."""
    _, about = artifact.policies.get("linear", ({}, {}))
    if about.get("squash"):
        return tuple(about["squash"].split(","))
    spec = real_spec(artifact)
    return next((RECIPES[t.name].squash for t in TASKS.values() if t.real.id == spec.id), None)


class ImproveParser(Parser):
    """The flags of `wm improve`: the fields of `ImproveConfig` or `OnlineConfig`.

    The defaults are those of the task, or of the environment.
    """

    def __init__(self, args: list[str], prog: str) -> None:
        super().__init__(prog=prog, description=about(improve))
        self.task, self.env, self.family = (value_of(flag, args) for flag in ("--task", "--env", "--family"))
        self.also = {"spec.wrapper": "--wrapper"}
        families = ("auto", *FAMILIES)
        if self.family is not None and self.family not in families:
            hint = did_you_mean(self.family, families)
            self.error(f"--family must be one of {', '.join(families)}, got {self.family!r}{hint}")
        if self.task is not None and self.env is not None:
            self.error(f"--task {self.task} and --env {self.env} exclude each other")
        kind = OnlineConfig if self.family in names("online") else ImproveConfig
        self.add_config_flag()
        self.add_argument("--task", choices=sorted(RECIPES), help="train with the settings of this shipped dream")
        self.add_argument(
            "--env", help="train on this environment, a Gymnasium id or module:Id-v0, with default settings"
        )
        self.add_argument("--dashboard", type=bool, default=False, help=SHOW_DASHBOARD)
        self.add_fields_of(kind)
        recipe = self._recipe(args)
        if recipe is not None:
            self.set_defaults(flat(asdict(recipe)))
        if value_of("--ray", args) is not None:
            self.set_defaults({"procs": None})  # The number of a recipe is meant for one machine.
        self.follow_seed()
        self.usually = {"spec.id": "give --env ID (any Gymnasium id, or module:Id-v0) or --task NAME"}

    def arguments(self, args: list[str]) -> dict[str, Any]:
        """The config that the flags describe."""
        values = super().arguments(args)
        if (values.pop("task"), values.pop("env")) != (self.task, self.env):
            self.error("give task and env as --task NAME or --env ID, not in a file")
        return {"dashboard": values.pop("dashboard"), "cfg": self.build(values)}

    def _recipe(self, args: list[str]) -> ImproveConfig | OnlineConfig | None:
        """The default settings; they depend on the environment in `args`."""
        known = RECIPES.get(self.task or "")
        if known is None and self.env is None:
            return None
        spec = known.spec if known is not None else self._spec(args, RealSpec(str(self.env)))
        if self.kind is ImproveConfig:
            recipe = known or recipe_for(RealSpec(spec.id, spec.kwargs, wrapper=spec.wrapper))
            self._note_limit(spec, recipe.spec)
            return recipe
        family, native = str(self.family), spec
        if known is None:
            native = limited(spec_for(RealSpec(spec.id, spec.kwargs, wrapper=spec.wrapper)))
            self._note_limit(spec, native)
        return online_recipe(family, spec.id, seen_by(family, self._spec(args, native)))

    def _spec(self, args: list[str], usual: RealSpec) -> RealSpec:
        """The environment that `args` and their file describe, if the rest is as in `usual`."""
        self.set_defaults(flat({"spec": asdict(usual), "out": ""}))
        if self.kind is OnlineConfig:
            self.set_defaults({"family": self.family, "size": ""})
        silent = [arg for arg in args if arg not in ("-h", "--help") and not arg.startswith(("--print_", "--print-"))]
        spec: RealSpec = self.instantiate(self.parse_args(silent)).spec
        return spec

    def _note_limit(self, given: RealSpec, used: RealSpec) -> None:
        """Print that an episode limit was set, because the environment has none."""
        if self.task is None and given.max_episode_steps is None and used.max_episode_steps is not None:
            console.print(
                f"{used.id} has no episode limit, so {used.max_episode_steps:,} steps are used; set another one with "
                "--spec.max_episode_steps N",
                soft_wrap=True,
                highlight=False,
            )
