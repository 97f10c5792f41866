# The habits of this project, one target each. CONTRIBUTING.md explains them.
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

# Where it is set, as in many images, each of the hundreds of processes that the tests start compiles the project anew.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help install rules demo serve test test-glmtts test-metrics test-gateway test-systemd test-docker check format soak chaos bench wheel clean

help:  ## this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

# One .venv for all. Each target installs what it needs, an extra of pyproject.toml, and leaves a stamp. A strict editable
# install is a tree of links, made once: it is made anew when a file comes or goes.
FILES := $(shell find protocol client daemon gateway etc systemd -type f ! -name '*.pyc' | sort)
SUM := $(shell echo $(FILES) | cat - pyproject.toml | cksum | cut -d' ' -f1)
has = $(VENV)/.has-$(1)-$(SUM)
comma := ,
SERVE := espeak$(comma)gateway
# Extras that another one includes.
WITH_$(SERVE) := espeak gateway
WITH_test := $(SERVE) espeak gateway
WITH_peers := $(WITH_test) test
WITH_dev := $(WITH_peers) peers

install: $(call has,dev)  ## make .venv with the project and what its tests and checks need, but torch

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or later is needed; this is " + sys.version.split()[0] + ". Say which to use: make PYTHON=/path/to/python3.11 ...") if sys.version_info < (3, 11) else None'
	@echo "Making $(VENV) ..."
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); exit 1; }

# pip says what it downloads; a renewal, which downloads nothing, is quiet.
$(VENV)/.has-%-$(SUM): | $(BIN)/python
	@rm -rf build
	@echo "Installing the project and what '$*' needs into $(VENV) ..."
	@$(BIN)/python -m pip install $(if $(wildcard $(VENV)/.has-$*-*),--quiet) --disable-pip-version-check --editable '.[$*]' --config-settings editable_mode=strict
	@find $(VENV) -maxdepth 1 -name '.has-*' ! -name '*-$(SUM)' -delete
	@touch $(foreach extra,$* $(WITH_$*),$(call has,$(extra)))

demo: $(call has,espeak)  ## speak two sentences, kill a worker in mid-job, show times, clean up
	@$(BIN)/glmttsctl demo

serve: $(call has,$(SERVE))  ## daemon and HTTP gateway on private folders, until Ctrl-C: prints the page's address
	@$(BIN)/glmttsctl serve

# Tests of processes wait more than they compute: one more of them than processors, at most 4.
PROCESS_TESTS := $(shell n=$$(($$(nproc) + 1)); echo $$((n < 4 ? n : 4)))
test: $(call has,test)  ## every test that takes part in each change (under 5 minutes on two cores)
	@$(BIN)/python -m pytest -q -n logical --maxprocesses=8 tests/core tests/daemon tests/client tests/protocol tests/engines tests/fake_gpu tests/gateway tests/simulation
	@$(BIN)/python -m pytest -q -n $(PROCESS_TESTS) --dist worksteal tests/process

# The engine against a stand-in for GLM-TTS; with ROOT against a checkout of it that has a checkpoint, and PYTHON_OF_ROOT
# is the interpreter that has its packages.
ROOT ?=
PYTHON_OF_ROOT ?=
test-glmtts: $(call has,test) $(call has,glmtts)  ## the GLM-TTS engine, with a stand-in for upstream, or ROOT=/path PYTHON_OF_ROOT=/path/bin/python
	@GLMTTS_ROOT='$(ROOT)' GLMTTS_PYTHON='$(PYTHON_OF_ROOT)' \
	  $(BIN)/python -m pytest -q -n logical --maxprocesses=4 --dist loadfile tests/glmtts

test-metrics: $(call has,test)  ## the alert rules, and a real Prometheus scraping a real daemon (apt-get install prometheus)
	@$(BIN)/python -m pytest -q -n logical --maxprocesses=4 tests/metrics

test-gateway: $(call has,peers)  ## the gateway with OpenAI's package for Node, proxies and a browser (apt-get install nodejs npm nginx haproxy caddy chromium)
	@$(BIN)/python -m pytest -q -n $(PROCESS_TESTS) --dist loadfile tests/gateway_peers

rules: $(call has,dev)  ## write deploy/prometheus/glmtts.rules.yml from the table of alerts
	@$(BIN)/python -m glmtts.daemon.core.monitoring.alert_table > deploy/prometheus/glmtts.rules.yml

test-systemd: $(call has,test)  ## the service under a real systemd, in a container (root, debootstrap, systemd-container; minutes)
	@$(BIN)/python -m pytest -q tests/system/systemd

test-docker: $(call has,test)  ## the image under a Docker engine of the tests' own (root, debootstrap, docker.io; a minute or two)
	@$(BIN)/python -m pytest -q tests/system/docker

# How many lives of a thousand requests each, or FIRST:LAST.
SEEDS ?= 300
soak: $(call has,test)  ## the core through many simulated lives, SEEDS=0:1199 for more; a failing one is shrunk and named
	@$(BIN)/python -m tests.simulation.soak $(SEEDS)

# The seconds of each part, without GPUs and with.
CHAOS_S ?= 300
chaos: $(call has,test)  ## what takes minutes: every fault and harm from outside, the daemon killed fifty times, ten thousand jobs
	@GLMTTS_CHAOS_S=$(CHAOS_S) $(BIN)/python -m pytest -q -s tests/system --ignore tests/system/systemd --ignore tests/system/docker

check: install  ## formatting, lint, types, import rules
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy
	@$(BIN)/mypy --follow-imports=silent tests
	@$(BIN)/lint-imports

format: install  ## format, and fix what the linter can fix
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

# An interpreter that has another version of this package, to measure both in one run.
AGAINST ?=
# QUICK=1: each part for a moment, to see that it runs.
QUICK ?=
quick = $(if $(QUICK),$(1))
bench: $(call has,test)  ## measure against the limits and the peers (half an hour; QUICK=1: minutes, no results), AGAINST=/path/bin/python of another version, ROOT= and PYTHON_OF_ROOT= as for test-glmtts
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[bench]' --config-settings editable_mode=strict \
	  || echo "The peer or the plot can't be installed here: they will be missing."
	@$(BIN)/python bench/overhead.py $(call quick,--quick) $(if $(AGAINST),--beside '$(AGAINST)')
	@$(BIN)/python bench/gateway.py $(call quick,--quick)
	@$(BIN)/python bench/metrics.py $(call quick,--quick)
	@$(BIN)/python bench/faults.py $(call quick,--quick)
	@$(BIN)/python bench/leaks.py $(call quick,--quick)
	@$(BIN)/python bench/scheduling.py $(call quick,--quick)
	@$(BIN)/python bench/slots.py $(call quick,--seconds 5)
	@$(BIN)/python bench/fairness.py $(call quick,--seconds 10)
	@$(BIN)/python bench/preemption.py $(call quick,--rounds 1 --chapters 2 --only fault)
	@$(BIN)/python bench/estimates.py $(call quick,--seconds 5)
	@$(BIN)/python bench/durable.py $(call quick,--seconds 0.5 --rounds 1)
	$(if $(ROOT),@$(BIN)/python bench/engine.py --root '$(ROOT)' --python '$(PYTHON_OF_ROOT)' $(call quick,--users 1 --rounds 1))

wheel: | $(BIN)/python  ## build the distribution into dist/
	@rm -rf dist/glmtts_supervisor-*.whl build/lib build/bdist.*
	@$(BIN)/python -m pip wheel --disable-pip-version-check --no-deps --wheel-dir dist .

clean:  ## remove what the targets made
	@rm -rf $(VENV) .container build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis bench/results bench/peers/.venv
