"""World model families: one family, one file."""
