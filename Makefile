# Everything here sets itself up: a virtual environment in .venv, remade when pyproject.toml changes.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
BFCL   := bfcl-eval==2026.3.23

.PHONY: demo test lint types check bench-parser bench-wire clean

demo: $(VENV)/.installed        ## BFCL tasks through client, proxy and simulated model, with a picture of each run
	$(BIN)/asynclm demo

test: $(VENV)/.installed        ## the whole test-suite
	$(BIN)/python -m pytest $(ARGS)

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# mypy cannot see setuptools' package-dir mapping, so it checks a throw-away tree of links with the installed names.
types: $(VENV)/.installed
	rm -rf build/types && mkdir -p build/types/asynclm
	ln -s ../../../cml ../../../adapters ../../../proxy build/types/asynclm/
	MYPYPATH=build/types $(BIN)/mypy -p asynclm

check: lint types test

bench-parser: $(VENV)/.installed   ## microseconds a chunk, plain text and call text
	$(BIN)/python bench/parser.py

bench-wire: $(VENV)/.installed     ## what the proxy costs a chunk and a request, side by side with direct access
	$(BIN)/python bench/wire.py

$(VENV)/.installed: pyproject.toml
	test -d $(VENV) || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade 'pip>=25.1'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable . --group dev --group demo
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps $(BFCL)
	touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
