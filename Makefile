# make demo    install without torch, then judge and answer a mixed list of queries
# make test    everything needed, then the tests
# make check   ruff, pyright and the tests
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin

# The playground is tested in a real browser: Debian's, unless there is one.
BROWSER = command -v chromium >/dev/null || command -v google-chrome >/dev/null || \
	{ apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends chromium; }

.PHONY: demo test check lint

demo: $(VENV)/base
	$(BIN)/guardian check --file examples/queries.txt

test: $(VENV)/dev
	$(BROWSER)
	$(BIN)/python -m pytest

lint: $(VENV)/dev
	$(BIN)/ruff check src tests bench
	$(BIN)/ruff format --check src tests bench
	$(BIN)/pyright --pythonpath $(BIN)/python

check: lint test

$(VENV)/base: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --editable .
	touch $@

$(VENV)/dev: $(VENV)/base
	$(BIN)/pip install --quiet torch==2.13.0
	$(BIN)/pip install --quiet --editable '.[dev]'
	touch $@
