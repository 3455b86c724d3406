"""Scores of policies, and measures of how closely a dream matches reality."""
