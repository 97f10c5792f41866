# The habits of this project, one target each. CONTRIBUTING.md explains them.
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: help install demo test check format bench clean

help:  ## this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

# A strict editable install is a tree of links, made once: it is made anew when a file comes or goes.
FILES := $(shell find protocol client daemon etc -name '*.py' -o -name '*.toml' -o -name py.typed | sort)
STAMP := $(VENV)/.installed-$(shell echo $(FILES) | cat - pyproject.toml | cksum | cut -d' ' -f1)

install: $(STAMP)  ## make .venv and install the project in it, with everything that its tests need

$(STAMP):
	@$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or later is needed; this is " + sys.version.split()[0] + ". Say which to use: make PYTHON=/path/to/python3.11 ...") if sys.version_info < (3, 11) else None'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@rm -f $(VENV)/.installed-*; rm -rf build
	@echo "Installing into $(VENV) ..."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]' --config-settings editable_mode=strict
	@touch $@
