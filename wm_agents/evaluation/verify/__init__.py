"""A saved model checked on held-out real episodes: `verify_model` runs every check."""
