"""Fidelity of a model: how far what it dreams is what comes; `report.fidelity_report` does it all."""
