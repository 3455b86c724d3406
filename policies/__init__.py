"""Policies, for dreams and for real environments."""
