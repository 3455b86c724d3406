"""Keys that projects of this kind have elsewhere, and why a wm.toml has not: what does nothing is not offered."""

ABSENT = {
    "training.backend": "there is one, PyTorch",
    "training.backend_profile": "there is one backend, PyTorch",
    "data.num_episodes": "real steps are what data cost; say num_steps",
    "data.gym_env": "the environment is said once, at the top, as environment",
    "architecture.learning_rate": "it belongs to [training]",
    "online_collection.max_episode_steps": "it belongs to [data], and holds in evaluation too",
    "visualization.host": "there is no dashboard yet",
    "visualization.port": "there is no dashboard yet",
    "visualization.open_browser": "there is no dashboard yet",
    "visualization.refresh_ms": "curves are drawn when training ends; until then TensorBoard has them",
    "verify.baseline": "models are compared with reality and with untrained ones, never with stored numbers",
    "verify.env": "a model is verified in the environment that it was trained for",
    "verify.backend": "there is one, PyTorch",
    "verify.backend_profile": "there is one backend, PyTorch",
    "verify.proof_claim": "there is one claim: the dream promises what reality pays",
    "verify.allow_official_only": "there is nothing else to allow",
    "model_type": "model says it, as family:size",
    "cloud": "everything runs on this machine",
    "flywheel": "nothing leaves this machine",
}
