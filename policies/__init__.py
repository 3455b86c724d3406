"""Policies: what acts, in the dream or in the real environment."""
