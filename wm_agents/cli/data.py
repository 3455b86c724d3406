"""`wm data`: describe, verify and convert recorded episodes."""

from __future__ import annotations

import json
import zipfile
from collections import Counter
from pathlib import Path
from typing import Any, Literal, NamedTuple

from numpy.typing import NDArray
from rich.console import Console

from wm_agents.cli.printing import print_json, say, table
from wm_agents.data.dataset import Dataset
from wm_agents.data.episode import UNKNOWN_SEED, check_episode
from wm_agents.data.minari import export_minari, import_minari
from wm_agents.data.npz import npz_to_shards, shards_to_npz
from wm_agents.data.replay import ReplayBuffer
from wm_agents.data.shard import SUFFIX, ShardError, read_info
from wm_agents.spaces import spaces_of
from wm_agents.system.progress import Bar
from wm_agents.system.replace import orphans


def info(path: str, as_json: bool = False) -> None:
    """Describe a folder of shards or a replay buffer's npz file: spaces, episodes, returns, actions.

    Args:
        path: the folder or the npz file.
        as_json: print one JSON object on stdout.
    """
    found = _about_npz(Path(path)) if path.endswith(".npz") else _about_shards(Path(path))
    if as_json:
        print_json(found)
        return
    table(("what", "value"), ((key, _text(value)) for key, value in found.items()))


def convert(
    source: str,
    out: str,
    to: Literal["shards", "npz", "minari"] | None = None,
    env: str | None = None,
    download: bool = False,
) -> None:
    """Convert episodes between shards, npz files of a replay buffer and Minari datasets.

    Args:
        source: a folder of shards, an npz file of a replay buffer, or a Minari dataset (its id or its
            folder).
        out: a new folder of shards, a new npz file, or the id of a new Minari dataset, such as name-v0.
        to: the new format: shards, npz or minari; by default npz if `out` ends in .npz, else minari if the
            source is a folder of shards, else shards.
        env: the environment that the data comes from, if the data does not record it; npz files need it.
        download: download the Minari dataset if it is not on this machine.
    """
    shards = Path(source).is_dir() and any(Path(source).glob(f"*{SUFFIX}"))
    if to is None and out.endswith(".npz"):
        to = "npz"
    to = to or ("minari" if shards else "shards")
    if to != "minari" and Path(out).exists():
        raise FileExistsError(f"{out} exists; choose another path")
    if shards == (to == "shards"):
        raise ValueError(
            f"{source} already contains shards"
            if shards
            else f"only shards can be converted to {to}, but {source} has none; convert it to shards first"
        )
    print(f"{out}: {_converted(Path(source), out, to, env, download)}")


def verify(path: str, as_json: bool = False) -> int:
    """Read every frame and check that checksums match and episodes are valid.

    The exit code is 1 if a file is damaged.

    Args:
        path: a folder of shards, or an npz file of a replay buffer.
        as_json: print one JSON object on stdout.
    """
    found = _verify_npz(Path(path)) if path.endswith(".npz") else _verify_shards(Path(path), Console(stderr=True))
    damaged = sum(bool(file.problem) for file in found)
    if as_json:
        print_json({"ok": not damaged, "files": [file._asdict() for file in found]})
        return int(damaged > 0)
    rows = ((f.name, f"{f.episodes:,}", f"{f.steps:,}", f.problem or "ok") for f in found)
    table(("file", "episodes", "steps", "state"), rows)
    hint = "; delete the damaged ones and run the same `wm collect` again to replace them" if damaged else ""
    say(f"{len(found) - damaged} of {len(found)} files are intact{hint}")
    return int(damaged > 0)


def _converted(source: Path, out: str, to: str, env: str | None, download: bool) -> str:
    """Convert, and return a summary of the result."""
    if to == "npz":
        buffer = shards_to_npz(source, Path(out), env)
        return f"{buffer.num_episodes} episodes, {len(buffer)} steps, actions encoded"
    if to == "minari":
        obs_space, act_space = (None, None) if env is None else spaces_of(env)
        made = export_minari(source, out, observation_space=obs_space, action_space=act_space)
        return f"{made.total_episodes} episodes, {made.total_steps} steps"
    if source.suffix != ".npz":
        data = import_minari(str(source), Path(out), download=download)
    elif env is None:
        raise ValueError(f"{source} does not record its environment; give it with --env ID")
    else:
        data = npz_to_shards(source, Path(out), env)
    return f"{data.num_episodes} episodes, {data.num_steps} steps in {len(data.shards)} shards"


class Verified(NamedTuple):
    """Result of the check of one file."""

    name: str
    episodes: int
    steps: int
    problem: str = ""
    """The problem found; empty if there is none."""


def _verify_npz(path: Path) -> list[Verified]:
    try:
        with zipfile.ZipFile(path) as archive:
            if damaged := archive.testzip():
                raise ValueError(f"{damaged} does not match its checksum")
        buffer = ReplayBuffer.load(path)
    except (ValueError, zipfile.BadZipFile) as error:
        return [Verified(path.name, 0, 0, str(error))]
    return [Verified(path.name, buffer.num_episodes, len(buffer))]


def _verify_shards(root: Path, console: Console) -> list[Verified]:
    if not root.is_dir():
        raise FileNotFoundError(f"no dataset at {root}: expected a directory of *{SUFFIX} shards, or an npz")
    data = Dataset(root)
    names = [shard.name for shard in data.shards]
    again = {seed for seed, times in Counter(s for s in data.seeds if s != UNKNOWN_SEED).items() if times > 1}
    found = []
    begin = 0
    with Bar(f"reading {root}", len(names), console) as bar:
        for number, shard in enumerate(data.shards):
            numbers = range(begin, begin + shard.num_episodes)
            begin = numbers.stop
            problem = _first_problem(data, numbers) or _repeated(shard.seeds, again)
            found.append(Verified(shard.name, shard.num_episodes, shard.num_steps, problem))
            bar.update(number + 1, shard.name)
    data.close()
    skipped = {name: why for name, why in data.skipped.items() if name not in names}
    found += [Verified(name, *_size(root / name), problem=why) for name, why in skipped.items()]
    found += [
        Verified(file.name, 0, 0, "incomplete file of a killed process; it can be deleted") for file in orphans(root)
    ]
    if not found:
        raise FileNotFoundError(f"no *{SUFFIX} shards in {root}")
    return found


def _first_problem(data: Dataset, numbers: range) -> str:
    for i in numbers:
        try:
            check_episode(data.episode(i))
        except (ShardError, ValueError, OSError, KeyError) as error:
            return f"episode {i - numbers.start}: {error}"
    return ""


def _repeated(seeds: tuple[int, ...], again: set[int]) -> str:
    twice = [seed for seed in seeds if seed in again]
    return f"seed {twice[0]} occurs more than once in the data" if twice else ""


def _size(path: Path) -> tuple[int, int]:
    """Return the numbers of episodes and steps of a damaged file, as far as it records them."""
    try:
        shard = read_info(path)
    except (ShardError, OSError):
        return 0, 0
    return shard.num_episodes, shard.num_steps


def _about_shards(root: Path) -> dict[str, Any]:
    data = Dataset(root)
    first = data.shards[0] if data.shards else None
    if first is None:
        raise FileNotFoundError(f"no readable *{SUFFIX} shards in {root}; skipped: {data.skipped or 'none'}")
    seeds = [seed for seed in data.seeds if seed != UNKNOWN_SEED]
    return {
        "kind": "shards",
        "environment": data.spec.get("id"),
        "spec": data.spec,
        "shards": len(data.shards),
        "episodes": data.num_episodes,
        "steps": data.num_steps,
        "bytes": data.num_bytes,
        "bytes per frame": round(data.num_bytes / data.num_frames, 1),
        "observations": f"{first.obs_dtype} {list(first.obs_shape)}",
        "actions": f"{first.act_dtype} {list(first.act_shape)}",
        "terminated": int(data.term.sum()),
        "truncated": int(data.trunc.sum()),
        "length": _spread(data.lengths),
        "return": _spread(data.returns),
        "seeds": [min(seeds), max(seeds)] if seeds else None,
        "skipped": data.skipped,
    }


def _about_npz(path: Path) -> dict[str, Any]:
    buffer = ReplayBuffer.load(path)
    return {
        "kind": "npz file of a replay buffer",
        "capacity": buffer.capacity,
        "episodes": buffer.num_episodes,
        "steps": len(buffer),
        "bytes": path.stat().st_size,
        "observations": f"{buffer.obs_dtype} {list(buffer.obs_shape)}",
        "action_dim": buffer.action_dim,
    }


def _spread(values: NDArray[Any]) -> dict[str, float]:
    return {
        name: round(float(part), 3)
        for name, part in (("mean", values.mean()), ("std", values.std()), ("min", values.min()), ("max", values.max()))
    }


def _text(value: Any) -> str:
    if isinstance(value, dict) and set(value) == {"mean", "std", "min", "max"}:
        return f"{value['mean']:,g} ± {value['std']:,g}, from {value['min']:,g} to {value['max']:,g}"
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return value if isinstance(value, str) else json.dumps(value)


VERBS = {"info": info, "convert": convert, "verify": verify}
