"""The fidelity report: how closely the dream of a model matches reality; see `report.fidelity_report`."""
