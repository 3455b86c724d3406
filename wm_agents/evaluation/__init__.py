"""Scores, and how closely a dream matches reality."""
