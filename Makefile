# Two commands do all the set-up on a fresh machine: `make demo` and `make test`.
MAKEFLAGS += --no-print-directory
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
ARGS ?=
JOBS ?= 2

.PHONY: demo test test-slow lint types check clean

$(VENV)/.base: pyproject.toml constraints.txt
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "Installing into $(VENV) (a minute or two the first time) ..." >&2
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[torch,sklearn]' >&2
	@touch $@

$(VENV)/.dev: $(VENV)/.base
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[all,dev]' >&2
	@touch $@

demo: $(VENV)/.base ## Three daemons train a model while the coordinator is killed (ARGS=--json for one line of JSON)
	@$(BIN)/hivenode demo $(ARGS)

# JOBS processes: tests on real clocks, sockets and processes are all for one of them (tests/conftest.py).
test: $(VENV)/.dev ## All tests but the long ones
	$(BIN)/python -m pytest -n $(JOBS) --dist loadgroup $(ARGS)

test-slow: $(VENV)/.dev ## The long ones too
	$(BIN)/python -m pytest -n $(JOBS) --dist loadgroup -m "slow or not slow" $(ARGS)

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

types: $(VENV)/.dev
	$(BIN)/mypy hivenode

check: lint types test ## What CI runs

clean:
	rm -rf $(VENV) build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
