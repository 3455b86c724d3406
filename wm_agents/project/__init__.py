"""A project folder: `wm init` writes it, `wm train` reads its wm.toml, `wm verify` holds its model against reality."""
