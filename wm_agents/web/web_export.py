"""A dream as static files: the model runs in the visitor's browser, without a server."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from safetensors.torch import save

from wm_agents.checkpoint import Artifact
from wm_agents.models.model import Model
from wm_agents.models.objects import Objects
from wm_agents.pretrained import check_dream, dream_of, load_model, load_policy
from wm_agents.web.export_folder import MARK, export_folder
from wm_agents.web.playable import load_playable

STATIC = Path(__file__).parent / "static"
SHARED = ("style.css", "icon.svg", "controls.js", "charts.js", "drawings.js", "page.js")
OWN = ("index.html", "player.js", "dream.js", "objects.js", "maths.js", "noise.js")
POLICIES = ("linear", "mlp")
"""Kinds of policies that the page can run."""
UNUSED = ("vision.encoder.",)
"""Weights that a dream does not need."""


def export_web(model: str, out: Path) -> list[str]:
    """Write a folder that any web server serves, and that plays the dream in the browser.

    Returns:
        What the page cannot run, by name.

    Raises:
        ValueError: the page cannot run models like this one.
        FileExistsError: `out` exists and contains other files.
    """
    net, artifact = load_model(model)
    check_dream(artifact)
    _check_runs_in_browser(net)
    facts = load_playable(model).facts()
    kinds = [kind for kind in POLICIES if kind in artifact.policies and _runs(net, artifact, kind)]
    facts |= {"model": net.cfg.to_dict(), "cut_off": dream_of(artifact).cut_off, "policies": kinds}
    tensors = {name: t.contiguous() for name, t in artifact.tensors.items() if not name.startswith(UNUSED)}
    with export_folder(out) as folder:
        (folder / "model.safetensors").write_bytes(save(tensors))  # `save_file` lets only its owner read.
        for file in ("starts.safetensors", *(f"policy_{kind}.safetensors" for kind in kinds)):
            shutil.copyfile(artifact.path / file, folder / file)
        for path in (*(STATIC / name for name in SHARED), *(STATIC / "export" / name for name in OWN)):
            shutil.copyfile(path, folder / path.name)
        (folder / MARK).write_text(json.dumps(facts), encoding="utf-8")
    return [f"policy ({kind})" for kind in sorted(artifact.policies.keys() - set(kinds))]


def _check_runs_in_browser(model: Model) -> None:
    """Check that the page has an implementation of this model.

    Raises:
        ValueError: it has none; the message names the part.
    """
    cfg: Any = model.cfg
    lacking = None
    if model.family not in ("vmc", "ensemble", "objects"):
        lacking = f"family {model.family}"
    elif model.family == "vmc" and cfg.vision == "identity":
        lacking = f"V-M-C of vectors {model.obs_space.shape}"
    elif model.family == "vmc" and cfg.mixture != "joint":
        lacking = f"mixture={cfg.mixture!r}"
    elif isinstance(model, Objects) and model.channels_first:
        lacking = f"images {model.obs_space.shape} with channels first"
    elif type(model.act_space).__name__ not in ("Discrete", "Box"):
        lacking = f"actions {model.act_space}"
    if lacking is not None:
        raise ValueError(
            f"the browser has no implementation of {lacking}; it runs ensembles, object models, and V-M-C of images "
            "with mixture='joint', with Discrete or Box actions. `wm play` shows every model"
        )


def _runs(model: Model, artifact: Artifact, kind: str) -> bool:
    """Whether the page can run the policy."""
    policy: Any = load_policy(model, artifact, kind)
    return kind == "linear" or policy.squash in ("argmax", "clip", "tanh", "unit")
