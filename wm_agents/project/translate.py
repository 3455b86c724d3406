"""Translates a wm.toml to the settings of environment, model and training."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import gymnasium as gym

from wm_agents.errors import ConfigurationError
from wm_agents.loops.online_config import OnlineConfig, online_defaults, online_recipe
from wm_agents.loops.recipes import PROJECT_RECIPES, ImproveConfig, recipe_for, seeded
from wm_agents.loops.seeds import first_env_seed, kept_env_seed
from wm_agents.models.config import WorldModelConfig
from wm_agents.models.families import build, config_class
from wm_agents.models.model import Model
from wm_agents.project.schema import Project
from wm_agents.spaces import action_space_of, action_type_of, space_of
from wm_agents.system.files import PROJECT_FILE
from wm_agents.training.config import TrainingConfig
from wm_envs.action import act_dim
from wm_envs.env_id import LackingEnv, UnknownEnv
from wm_envs.real import probe
from wm_envs.registry import RealSpec

FINAL_EPISODES = 20
"""Held-out episodes for the score at the end of training."""
Spaces = tuple[gym.Space[Any], gym.Space[Any]]


def spec_of(project: Project) -> RealSpec:
    """The environment with the preprocessing of [data]."""
    data = project.data
    return RealSpec(
        project.environment,
        dict(data.env_kwargs),
        size=data.size,
        action_repeat=data.action_repeat,
        max_episode_steps=data.max_episode_steps,
        crop=data.crop,
        max_frames=data.max_frames,
        actions=data.actions,
        lives_end=data.lives_end,
        stack=data.stack,
        wrapper=data.wrapper,
    )


def spaces_of(project: Project, spec: RealSpec | None) -> Spaces:
    """The spaces of the model: those of the environment, or of [architecture] without an environment.

    Raises:
        ConfigurationError: [architecture] contradicts the environment, or is incomplete without one.
    """
    said = project.architecture
    if spec is not None:
        spaces = probe(spec).spaces
        _check_said(project, spaces)
        return spaces
    if lacking := [name for name in ("obs_shape", "action_dim") if said.get(name) is None]:
        raise ConfigurationError(
            f"without an environment, [architecture] needs {' and '.join(lacking)}; "
            "for example obs_shape = [4], action_dim = 2"
        )
    return space_of(said["obs_shape"]), action_space_of(said["action_dim"], said.get("action_type"))


def _check_said(project: Project, spaces: Spaces) -> None:
    obs_space, act_space = spaces
    found = {"obs_shape": obs_space.shape, "action_dim": act_dim(act_space), "action_type": action_type_of(act_space)}
    wrong = {
        f"architecture.{name}": f"is {project.architecture[name]!r}, but {value!r} in {project.environment}"
        for name, value in found.items()
        if project.architecture.get(name) not in (None, value)
    }
    if wrong:
        told = [f"  {project.places.get(name, PROJECT_FILE)}: {name} {text}" for name, text in wrong.items()]
        raise ConfigurationError(
            "\n".join([f"[architecture] in {PROJECT_FILE} does not match {project.environment}:", *told])
            + "\nremove these optional keys, or create a new project: "
            f"`wm init FOLDER --env {project.environment}`"
        )


def _config_of(project: Project, obs_space: gym.Space[Any]) -> WorldModelConfig:
    """The config of the model: its size, with the fields of [architecture]."""
    cfg = config_class(project.family).from_size(project.size).fitting(obs_space)
    limit = None
    if hasattr(cfg, "episode_length"):
        limit = _limit(project)
    return cfg.replace(**{**({"episode_length": limit} if limit else {}), **project.architecture})


def _limit(project: Project) -> int | None:
    """The episode limit of the environment, or None."""
    try:
        return probe(spec_of(project)).limit
    except (UnknownEnv, LackingEnv):
        return None


def model_of(project: Project, spaces: Spaces) -> Model:
    """Create the untrained model.

    Raises:
        ConfigurationError: it does not support the spaces of the environment.
    """
    return build(project.family, _config_of(project, spaces[0]), *spaces)


def rounds_of(project: Project, spaces: Spaces) -> ImproveConfig:
    """Settings of the rounds, for families whose controllers are trained in dreams; one round without online
    collection."""
    online, data, said = project.online_collection, project.data, project.controller
    base = _recipe(project)
    rounds, first = (online.rounds, online.warmup_transitions) if online.enabled else (1, data.num_steps)
    horizon, most = said.horizon or base.horizon, data.episode_length or base.max_steps
    cfg = replace(
        base,
        spec=spec_of(project),
        out=str(project.out),
        family=project.family,
        rounds=rounds,
        random_steps=first,
        round_steps=max((data.num_steps - first) // max(rounds - 1, 1), 1),
        max_steps=most,
        vision=base.vision.replace(**project.training),
        memory=base.memory.replace(**project.training),
        dynamics=base.dynamics.replace(**project.training),
        window=project.training.get("sequence_length", base.window),
        controller=said.kind,
        horizon=horizon,
        final_episodes=FINAL_EPISODES,
        report_minutes=project.visualization.report_minutes,
        judge_episodes=base.judge_episodes if rounds > 1 else 0,
        env_seed=env_seed_of(project),
        live_fps=live_fps_of(project),
    )
    cfg = seeded(cfg, seed_of(project))
    if said.iterations is not None:
        cfg = replace(
            cfg, ppo=replace(cfg.ppo, iterations=said.iterations), cma=replace(cfg.cma, generations=said.iterations)
        )
    if project.row.settings:
        own: dict[str, Any] = {project.row.settings: _config_of(project, spaces[0])}
    else:
        own = {"size": project.size, "overrides": _overrides(project)}
    return replace(cfg, **own)


def _overrides(project: Project) -> dict[str, Any]:
    """The fields of [architecture] without those of the environment."""
    return {k: v for k, v in project.architecture.items() if k not in ("obs_shape", "action_dim", "action_type")}


def online_of(project: Project) -> OnlineConfig:
    """Settings of online training, for families with their own policy."""
    online, data = project.online_collection, project.data
    if data.lives_end:
        raise ConfigurationError(
            f"{project.places.get('data.lives_end', PROJECT_FILE)}: {project.family} does not support lives_end; "
            "remove it"
        )
    base = online_recipe(project.family, project.environment, spec_of(project))
    names = {"sequence_length": "length", "log_interval": "log_every"}
    said = {names.get(k, k): v for k, v in project.training.items() if k != "output_dir"}
    cfg = replace(
        base,
        out=str(project.out),
        size=project.size,
        overrides={**base.overrides, **_overrides(project)},
        real_steps=data.num_steps,
        num_envs=online.num_envs,
        prefill=online.warmup_transitions,
        capacity=data.buffer_capacity,
        final_episodes=FINAL_EPISODES,
        report_minutes=project.visualization.report_minutes,
        env_seed=env_seed_of(project),
        live_fps=live_fps_of(project),
        **said,
    )
    return replace(cfg, ratio=cfg.batch_size * cfg.length / online.collect_steps_per_update)


def replay_of(project: Project) -> TrainingConfig:
    """Settings of offline training on a fixed replay buffer."""
    base = TrainingConfig(total_steps=1000, seed=seed_of(project))
    if project.is_online:
        facts = online_defaults(project.family, project.data.size is not None)
        names = {"batch_size": "batch_size", "length": "sequence_length", "learning_rate": "learning_rate",
                 "optimizer": "optimizer", "grad_clip": "grad_clip", "warmup_steps": "warmup_steps"}  # fmt: skip
        base = base.replace(**{names[name]: value for name, value in facts.items() if name in names})
    return base.replace(**project.training)


def training_of(project: Project) -> TrainingConfig:
    """All fields of [training], with the defaults of the family. For V-M-C the defaults are those of M; keys in the
    file apply to M and V."""
    if project.is_online:
        return replay_of(project)
    try:
        recipe = _recipe(project)
    except (UnknownEnv, LackingEnv):
        recipe = ImproveConfig(spec_of(project), str(project.out))
    own: TrainingConfig = getattr(recipe, project.row.training)
    if "training.sequence_length" not in project.row.unused:
        own = own.replace(sequence_length=recipe.window)
    return own.replace(**{"seed": seed_of(project), **project.training})


def seed_of(project: Project) -> int:
    """The random seed of the run."""
    return int(project.training.get("seed", 1))


def env_seed_of(project: Project) -> int:
    """The first environment seed of collection: that of a run to resume, or else derived from the seed."""
    seed = seed_of(project)
    kept = kept_env_seed(project.out, seed)
    if kept is None:
        return first_env_seed(seed)
    return kept


def live_fps_of(project: Project) -> float:
    """Frames per second of the live view during training; 0 turns it off."""
    return project.gameplay.live_fps if project.gameplay.enabled else 0.0


def _recipe(project: Project) -> ImproveConfig:
    """The recipe of a known environment, or default settings."""
    if project.data.wrapper is None:
        for known in PROJECT_RECIPES.values():
            if known.spec.id == project.environment:
                return known
    data = project.data
    return recipe_for(RealSpec(project.environment, dict(data.env_kwargs), wrapper=data.wrapper))
