"""World model families, one file each."""
