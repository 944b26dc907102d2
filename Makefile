# Everything here sets itself up: `make demo`, `make test` and `make check` work in a fresh clone.
# The first set-up builds llama.cpp (minutes, once a machine); later runs install nothing.

.DEFAULT_GOAL := help
.PHONY: help setup check test test-full test-vllm test-python-models test-browser test-alerts demo examples bench models voice clean

# The first Python here that is new enough.
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && exit; \
	done; echo python3)
BIN := .venv/bin
# With bytecode, whatever the environment says: rewriting every test's asserts anew takes seconds.
SHORT := not full and not vllm and not python_models and not promtool and not browser
PYTEST := PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest
# A finished environment's own Python answers at once; before that the machine's does the work.
SETUP_PYTHON := $(if $(and $(wildcard .venv/.keepwarm-stamp),$(wildcard $(BIN)/python)),$(BIN)/python,$(PYTHON))

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' Makefile

setup: ## Create .venv, build llama.cpp, install everything (nothing to do the second time)
	@$(SETUP_PYTHON) -E -s -S tools/bootstrap.py

check: setup ## What CI checks without running: ruff, mypy, import contracts
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/mypy $(wildcard tools/*.py bench/*.py) tests
	$(BIN)/mypy $(wildcard examples/*.py)
	MYPYPATH=examples/traces $(BIN)/mypy $(wildcard examples/traces/*.py)
	$(BIN)/lint-imports

# Three at once also where there are two cores: half of a test's time it waits for processes that it started.
test: setup ## Run the tests (minutes)
	$(PYTEST) -m "$(SHORT)" --numprocesses 3 --dist loadfile --no-loadscope-reorder

test-full: setup ## Run all tests, with long properties and campaigns
	$(PYTEST) --timeout 1800

test-python-models: setup ## Run real Whisper, sentence-transformers and transformers (builds .venv-python-models: 1.8 GB)
	$(SETUP_PYTHON) tools/side_environment.py python-models
	nice env $(PYTEST) -m python_models --timeout 1800 tests/workers tests/tools

test-vllm: setup ## Run the tests of engines against the real vLLM on the CPU (builds .venv-vllm first: 2.4 GB)
	$(SETUP_PYTHON) tools/side_environment.py vllm
	nice env $(PYTEST) -m vllm --timeout 900

test-browser: setup ## Look at traces in Perfetto in a browser (installs Debian's Chromium as root, unless one is here)
	$(BIN)/python tools/chromium.py
	$(PYTEST) -m browser tests/traces

test-alerts: setup ## Check the alert rules with promtool (gets Debian's, 19 MB, unless it is here)
	$(BIN)/python tools/promtool.py
	$(PYTEST) -m promtool tests/metrics

demo: setup ## Run six models under a budget for half of them, and trace it (fetches 800 MB once)
	@$(BIN)/python tools/fetch_models.py models/real
	@$(SETUP_PYTHON) tools/side_environment.py voice || echo "[setup] going on without the ear"
	$(BIN)/keepwarm demo --models models/real --speech .venv-voice/bin/python

models: setup ## Make models for tests and benchmarks, and fetch small real ones into models/real (320 MB)
	$(BIN)/python tools/make_models.py models/demo
	$(BIN)/python tools/fetch_models.py models/real

voice: setup ## Build the environment of the voice agent's ear and voice (.venv-voice: 500 MB)
	@$(SETUP_PYTHON) tools/side_environment.py voice

examples: setup ## Fetch what the examples need, and run each of them within two minutes
	@$(BIN)/python tools/run_examples.py

bench: setup ## Measure: the overhead of a warm call, the cost of a swap, and the rest of bench/ (minutes)
	@for name in overhead swap tracing footprint planning policies pipeline predict; do \
		echo "== bench/$$name.py"; $(BIN)/python bench/$$name.py || exit 1; \
	done

clean: ## Remove what was made, except .venv and the wheel cache
	rm -rf build dist out models *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -not -path './.venv/*' -prune -exec rm -rf {} +
