# The habits of this project, one target each. CONTRIBUTING.md explains them.
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: help install rules demo test test-glmtts test-metrics test-systemd test-docker check format soak chaos bench wheel clean

help:  ## this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

# A strict editable install is a tree of links, made once: it is made anew when a file comes or goes.
FILES := $(shell find protocol client daemon etc systemd -type f ! -name '*.pyc' | sort)
STAMP := $(VENV)/.installed-$(shell echo $(FILES) | cat - pyproject.toml | cksum | cut -d' ' -f1)

install: $(STAMP)  ## make .venv and install the project in it, with everything that its tests need

$(STAMP):
	@$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or later is needed; this is " + sys.version.split()[0] + ". Say which to use: make PYTHON=/path/to/python3.11 ...") if sys.version_info < (3, 11) else None'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@rm -f $(VENV)/.installed-*; rm -rf build
	@echo "Installing into $(VENV) ..."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]' --config-settings editable_mode=strict
	@touch $@

demo: install  ## speak two sentences, kill a worker in mid-job, show times, clean up
	@$(BIN)/glmttsctl demo

test: install  ## every test that takes part in each change (under 5 minutes on two cores)
	@$(BIN)/python -m pytest -q -n logical --maxprocesses=8 tests/core tests/daemon tests/client tests/protocol tests/engines tests/fake_gpu tests/simulation
	@$(BIN)/python -m pytest -q -n logical --maxprocesses=4 --dist loadfile tests/process

# The engine against a stand-in for GLM-TTS; with ROOT against a checkout of it that has a checkpoint, and PYTHON_OF_ROOT
# is the interpreter that has its packages.
ROOT ?=
PYTHON_OF_ROOT ?=
test-glmtts: install  ## the GLM-TTS engine, with a stand-in for upstream, or ROOT=/path PYTHON_OF_ROOT=/path/bin/python
	@GLMTTS_ROOT='$(ROOT)' GLMTTS_PYTHON='$(PYTHON_OF_ROOT)' \
	  $(BIN)/python -m pytest -q -n logical --maxprocesses=4 --dist loadfile tests/glmtts

test-metrics: install  ## the alert rules, and a real Prometheus scraping a real daemon (apt-get install prometheus)
	@$(BIN)/python -m pytest -q -n logical --maxprocesses=4 tests/metrics

rules: install  ## write deploy/prometheus/glmtts.rules.yml from the table of alerts
	@$(BIN)/python -m glmtts.daemon.core.monitoring.alert_table > deploy/prometheus/glmtts.rules.yml

test-systemd: install  ## the service under a real systemd, in a container (root, debootstrap, systemd-container; minutes)
	@$(BIN)/python -m pytest -q tests/system/systemd

test-docker: install  ## the image under a Docker engine of the tests' own (root, debootstrap, docker.io; a minute or two)
	@$(BIN)/python -m pytest -q tests/system/docker

# How many lives of a thousand requests each, or FIRST:LAST.
SEEDS ?= 300
soak: install  ## the core through many simulated lives, SEEDS=0:1199 for more; a failing one is shrunk and named
	@$(BIN)/python -m tests.simulation.soak $(SEEDS)

# For so many seconds, without GPUs and with.
CHAOS_S ?= 300
chaos: install  ## what takes minutes: every fault and harm from outside, the daemon killed fifty times, ten thousand jobs
	@GLMTTS_CHAOS_S=$(CHAOS_S) $(BIN)/python -m pytest -q -s tests/system --ignore tests/system/systemd --ignore tests/system/docker

check: install  ## formatting, lint, types, import rules
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports

format:  ## format, and mend what the linter can mend
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

bench: install  ## measure against the limits and the peers (minutes); bench/results/ has the numbers and a plot
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev,bench]' --config-settings editable_mode=strict \
	  || echo "The peer or the plot can't be installed here: they will be missing."
	@$(BIN)/python bench/overhead.py
	@$(BIN)/python bench/metrics.py
	@$(BIN)/python bench/faults.py
	@$(BIN)/python bench/leaks.py
	@$(BIN)/python bench/scheduling.py
	@$(BIN)/python bench/fairness.py
	@$(BIN)/python bench/preemption.py
	@$(BIN)/python bench/estimates.py
	@$(BIN)/python bench/durable.py
	@$(BIN)/python bench/journal.py

wheel: install  ## build the distribution into dist/
	@rm -f dist/glmtts_supervisor-*.whl
	@$(BIN)/python -m build --quiet --wheel

clean:  ## remove what the targets made
	@rm -rf $(VENV) .container build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis bench/results
