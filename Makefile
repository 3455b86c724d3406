PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed
# One process per core, at most four because each loads PyTorch. Idle ones take tests from the others.
PYTEST := $(BIN)/python -m pytest -n auto --maxprocesses 4 --dist worksteal

.PHONY: setup test test-all test-oldest test-browser test-cluster drill lint demo docs clean

setup: $(STAMP)

# Rebuilt only when what it installs has changed.
$(STAMP): setup.cfg pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --disable-pip-version-check --quiet -c constraints.txt -e '.[dev]'
	touch $(STAMP)

test: setup
	$(PYTEST) -m "not slow and not drill and not cluster"

test-all: setup
	$(PYTEST)

# Kills, damaged files, full disks, hanging environments: docs/reliability.md.
drill: setup
	$(PYTEST) -m drill

# The pages in Chromium; skipped where it is not installed.
test-browser: setup
	$(PYTEST) -m browser tests/test_web_browser.py

# A Ray cluster of two nodes on this machine, skipped where ray is not installed, and two processes of torchrun.
test-cluster: setup
	$(BIN)/python -m pytest -m cluster tests/test_ray.py tests/test_parallel.py

# The numerical tests with the oldest instruction set of PyTorch and oneDNN: rounding differs, passing must not.
NUMERICAL := $(addsuffix .py,$(addprefix tests/test_,\
	actor_critic bent_equations cmaes contract curriculum_stage dists dream dreamerv3 ensemble evolve fit_vmc laprop \
	latent linear mlp mppi nets objects quickstart resume_learners returns sb3 seeds tdmpc2 training verify vmc world_model))
test-oldest: setup
	ATEN_CPU_CAPABILITY=default ONEDNN_MAX_CPU_ISA=SSE41 $(PYTEST) -m "not slow and not drill and not cluster" $(NUMERICAL)

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

demo: setup
	$(BIN)/wm demo --out outputs/demo

# Into build/docs; a warning is an error.
docs: .venv/.docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet
	@echo build/docs/index.html

.venv/.docs: $(STAMP)
	$(BIN)/python -m pip install --disable-pip-version-check --quiet -c constraints.txt -e '.[docs]'
	touch $@

clean:
	rm -rf .venv outputs build *.egg-info .pytest_cache .mypy_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
