"""Keys of similar projects that a wm.toml does not support, with the reason."""

ABSENT = {
    "training.backend": "PyTorch is the only backend",
    "training.backend_profile": "PyTorch is the only backend",
    "data.num_episodes": "set num_steps, because data are counted in real steps",
    "data.gym_env": "set environment at the top of the file",
    "architecture.learning_rate": "it belongs to [training]",
    "online_collection.max_episode_steps": "it belongs to [data], and also applies to evaluation",
    "verify.baseline": "models are compared with reality and with untrained models, not with a stored baseline",
    "verify.env": "a model is verified in the environment it was trained for",
    "verify.backend": "PyTorch is the only backend",
    "verify.backend_profile": "PyTorch is the only backend",
    "verify.proof_claim": "there is only one proof: the dream return matches the real return",
    "verify.allow_official_only": "this option has no equivalent here",
    "model_type": "set model to family:size",
    "cloud": "everything runs on this machine",
    "flywheel": "there is no telemetry and no upload",
}
