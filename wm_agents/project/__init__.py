"""Projects: `wm init` creates a folder, `wm train` trains its model as wm.toml says, `wm verify` checks the
model."""
