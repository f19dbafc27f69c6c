# Everything runs in a virtual environment of its own, made at first use.
PYTHON ?= python3
BIN := .venv/bin
INSTALL = $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile
export DO_NOT_TRACK := 1
export MLFLOW_DISABLE_TELEMETRY := true
# Processes of MLflow's server that evaluate language models.
export MLFLOW_SERVER_ENABLE_JOB_EXECUTION := false
# Modules are compiled at their first import rather than all at installation; kept from writing
# what it compiled, Python would do it again for every command, at seconds each.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help install run test fuzz faults audit lint viz viz-build mlflow docs docs-serve notebooks benchmark gpu clean

help:  ## what can be made
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*##' '{printf "%-11s%s\n", $$1, $$2}'
	@echo "For example: make run. More, inside .venv: kedro run --help, kedro adaptive --help"

.venv/.installed: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
		{ echo "Python 3.10 or newer is needed; name it with make PYTHON=…" >&2; exit 1; }
	$(PYTHON) -m venv .venv
	$(INSTALL) --editable .
	@touch $@

# What tests, docs and the other arms need, beyond a run.
.venv/.dev: .venv/.installed
	$(INSTALL) --editable '.[dev]'
	@touch $@

install: .venv/.dev  ## the environment in .venv with all extras, and nothing else

run: .venv/.installed  ## the study on embedded data, in minutes
	$(BIN)/kedro run

test: .venv/.dev  ## all tests: as many at a time as there are cores, then those that want to be alone
	$(BIN)/python -m pytest --numprocesses auto --dist loadgroup -m 'not alone'
	$(BIN)/python -m pytest -m alone tests

fuzz: .venv/.dev  ## thousands of damaged files for every reader, instead of the tests' few; some minutes
	ADAPTIVE_OPT_FUZZ=2000 $(BIN)/python -m pytest tests/fuzz

faults: .venv/.dev  ## 200 faults: kill, fill, damage, run again, compare; about an hour, goes on where it was
	$(BIN)/python tests/faults/harness.py --faults 200 --seed 0 --json build/faults.json

audit: .venv/.dev  ## known vulnerabilities of what is installed; asks pypi.org
	$(BIN)/python -m pip freeze --exclude-editable > .venv/frozen.txt
	$(BIN)/python -m pip_audit --strict --no-deps --disable-pip --requirement .venv/frozen.txt

lint: .venv/.dev  ## style, types, layers
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

viz: .venv/.installed  ## the pipelines and their results, in a browser
	$(BIN)/kedro viz run --host 127.0.0.1

viz-build: .venv/.installed  ## the same as a static site, in build/viz
	$(BIN)/kedro viz build

mlflow: .venv/.installed  ## trainings with their curves, in a browser, at the address that it prints
	@echo "http://127.0.0.1:5000/#/experiments/1/runs?compareRunsMode=CHART&searchFilter=metrics.train_loss%3E=0&orderByKey=attributes.created"
	$(BIN)/mlflow ui --host 127.0.0.1 --workers 1 --backend-store-uri sqlite:///$(CURDIR)/mlflow.db

docs: .venv/.dev  ## the documentation as a site, in build/docs
	$(BIN)/python -m sphinx -q -W --keep-going -d build/doctrees docs build/docs

docs-serve: docs  ## the same at http://127.0.0.1:8000
	$(BIN)/python -m http.server --bind 127.0.0.1 --directory build/docs 8000

notebooks: .venv/.dev  ## their outputs made anew, from what make run left
	$(BIN)/python notebooks/refresh.py

benchmark: .venv/.dev  ## how fast ensembles and steps are, against others
	$(BIN)/python benchmarks/rr_study.py --study
	$(BIN)/python benchmarks/step_overhead.py
	$(BIN)/python benchmarks/network_ensembles.py
	$(BIN)/python benchmarks/tuning.py

MINUTES ?= 12
gpu: .venv/.dev  ## a session on a GPU of at most MINUTES=12; sessions add up in docs/results/gpu
	$(BIN)/python benchmarks/gpu_session.py --minutes $(MINUTES)
	$(BIN)/python docs/build_gpu.py

clean:  ## remove the environment and everything that was made
	rm -rf .venv .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .viz build
	rm -rf mlflow.db* mlflow_artifacts mlflow_unsent
	find data -type f ! -name .gitkeep ! -path 'data/01_raw/*' -delete
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
