"""The machine and the disk; nothing here knows of learning."""
