# All targets use the virtual environment .venv and create it at first use.
PYTHON ?= python3
BIN := .venv/bin
INSTALL = $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile
export DO_NOT_TRACK := 1
export MLFLOW_DISABLE_TELEMETRY := true
# No processes of MLflow's server that evaluate language models.
export MLFLOW_SERVER_ENABLE_JOB_EXECUTION := false
# pip installs without compiling, so Python must be allowed to save the bytecode of each module at
# its first import; otherwise every command takes seconds longer.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help install run test test-versions fuzz faults audit lint viz viz-build mlflow docs docs-serve notebooks benchmark gpu clean

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*##' '{printf "%-14s%s\n", $$1, $$2}'
	@echo "Example: make run. More commands, inside .venv: kedro run --help, kedro adaptive --help"

.venv/.installed: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
		{ echo "Python 3.10 or newer is required; give its path: make PYTHON=…" >&2; exit 1; }
	$(PYTHON) -m venv .venv
	$(INSTALL) --editable .
	@touch $@

# Additional packages for tests, documentation and optional arms.
.venv/.dev: .venv/.installed
	$(INSTALL) --editable '.[dev]'
	@touch $@

install: .venv/.dev  ## create .venv with all extras

run: .venv/.installed  ## run the study on embedded data; takes minutes
	$(BIN)/kedro run

test: .venv/.dev  ## run all tests: one process a core, then the tests marked alone
	$(BIN)/python -m pytest --numprocesses auto --dist loadgroup -m 'not alone'
	$(BIN)/python -m pytest -m alone tests

test-versions: .venv/.dev  ## run smoke and some tests with the oldest and newest allowed packages
	$(BIN)/python tests/versions.py oldest newest

fuzz: .venv/.dev  ## test every file reader with thousands of damaged files; takes some minutes
	ADAPTIVE_OPT_FUZZ=2000 $(BIN)/python -m pytest tests/fuzz

faults: .venv/.dev  ## inject 200 faults, run again, compare results; about an hour, can be resumed
	$(BIN)/python tests/faults/harness.py --faults 200 --seed 0 --json build/faults.json

audit: .venv/.dev  ## list known vulnerabilities of the installed packages; asks pypi.org
	$(BIN)/python -m pip freeze --exclude-editable > .venv/frozen.txt
	$(BIN)/python -m pip_audit --strict --no-deps --disable-pip --requirement .venv/frozen.txt

lint: .venv/.dev  ## check style, types and layers
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/codespell
	$(BIN)/python tests/prose.py

viz: .venv/.installed  ## show the pipelines and their results in a browser
	$(BIN)/kedro viz run --host 127.0.0.1

viz-build: .venv/.installed  ## build the same as a static site in build/viz
	$(BIN)/kedro viz build

mlflow: .venv/.installed  ## show runs and their curves in a browser, at the address that it prints
	@echo "http://127.0.0.1:5000/#/experiments/1/runs?compareRunsMode=CHART&searchFilter=metrics.train_loss%3E=0&orderByKey=attributes.created"
	$(BIN)/mlflow ui --host 127.0.0.1 --workers 1 --backend-store-uri sqlite:///$(CURDIR)/mlflow.db

docs: .venv/.dev  ## build the documentation as a site in build/docs
	$(BIN)/python -m sphinx -q -W --keep-going -d build/doctrees docs build/docs

docs-serve: docs  ## serve the documentation at http://127.0.0.1:8000
	$(BIN)/python -m http.server --bind 127.0.0.1 --directory build/docs 8000

notebooks: .venv/.dev  ## run the notebooks on the results of make run and save their outputs
	$(BIN)/python notebooks/refresh.py

benchmark: .venv/.dev  ## measure ensembles, steps and searches against alternatives
	$(BIN)/python benchmarks/rr_study.py --study
	$(BIN)/python benchmarks/step_overhead.py
	$(BIN)/python benchmarks/network_ensembles.py
	$(BIN)/python benchmarks/tuning.py

MINUTES ?= 12
gpu: .venv/.dev  ## test and measure on a GPU for MINUTES=12 at most; results in docs/results/gpu
	$(BIN)/python benchmarks/gpu_session.py --minutes $(MINUTES)
	$(BIN)/python docs/build_gpu.py

clean:  ## remove .venv and all results; keep downloads
	rm -rf .venv .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .viz build
	rm -rf mlflow.db* mlflow_artifacts mlflow_unsent
	find data -type f ! -name .gitkeep ! -path 'data/01_raw/*' -delete
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
