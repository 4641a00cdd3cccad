# On a machine with Python 3.11 or newer, make and git, `make demo` and `make test` set up everything they need.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# Plots need no display; TensorFlow's start-up messages are left out.
export MPLBACKEND := Agg
export TF_CPP_MIN_LOG_LEVEL ?= 3
# One worker for each core, at most 4. A file's tests stay on one worker, so that they share its fixtures.
PYTEST := $(BIN)/python -m pytest
WORKERS := -n auto --maxprocesses 4 --dist loadfile
COVERAGE := --cov=mnv2_keras --cov-report=term:skip-covered --cov-fail-under=95

.PHONY: demo test test-slow test-backends test-ray lint notebooks bench clean

demo: $(STAMP)
	$(BIN)/mnv2 demo

test: $(STAMP)
	$(PYTEST) $(WORKERS) $(COVERAGE) -m "not slow and not backends and not ray"

test-slow: $(STAMP)
	$(PYTEST) $(WORKERS) -m "slow and not backends and not ray"

test-backends: $(VENV)/.installed-backends
	$(PYTEST) -m backends

test-ray: $(VENV)/.installed-ray
	$(PYTEST) -m ray

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

notebooks: $(STAMP)
	$(PYTEST) tests/test_notebooks.py

bench: $(STAMP)
	$(BIN)/python benchmarks/keras_applications.py

$(STAMP): setup.cfg setup.py pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "mnv2_keras needs Python 3.11 or newer: make PYTHON=python3.11")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade --constraint constraints.txt pip setuptools wheel
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[test]'
	touch $@

$(VENV)/.installed-backends: $(STAMP)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --constraint constraints-backends.txt --editable '.[test,backends]'
	touch $@

$(VENV)/.installed-ray: $(STAMP)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --constraint constraints-ray.txt --editable '.[test,ray]'
	touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .ruff_cache .coverage
