# Two commands on a fresh machine: `make demo`, `make test`. Each makes its own .venv, and reuses it.
PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check

.PHONY: help demo test unit stress check format clean

help: ## this list
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 10

demo: .venv/ready ## the embedded study, end to end: a table and runs/docstrings/<time>/report.html
	$(BIN)/ssae run

test: .venv/ready-dev ## every test
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal -q

unit: .venv/ready-dev ## the tests that take seconds
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal -q -m "not slow"

stress: .venv/ready-dev ## training and harvests killed at random, files with flipped bytes; 5 minutes
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist load -q -m stress tests/stress

check: .venv/ready-dev ## lint, format, types, scripts, Dockerfile
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/shellcheck -x $$(git ls-files slurm docker | grep -vE '\.(py|yaml|md)$$|ocker')
	$(BIN)/hadolint docker/Dockerfile

format: .venv/ready-dev ## fix what ruff can fix
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean: ## remove the environment and everything built
	rm -rf .venv artifacts runs dist

# torch first: the pin decides its build (CPU or CUDA), nothing installed later may replace it.
.venv/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(PIP) torch==2.13.0
	$(PIP) -e ".[cpu]" -c constraints.txt
	touch $@

# dictionary-learning without what it needs: its nnsight wants older versions of everything, and the
# tests only need its SAE classes.
.venv/ready-dev: .venv/ready
	$(PIP) -e ".[cpu,dev,peers,quantized]" -c constraints.txt
	$(PIP) --no-deps dictionary-learning -c constraints.txt
	touch $@
