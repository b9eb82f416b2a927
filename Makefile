# Every target makes its own .venv and installs what it needs: only Python 3.11+ (with venv) and make are required.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
ARGS ?=

.DEFAULT_GOAL := help
.PHONY: help demo test check format bench soak fidelity fidelity-tail chaos lock picture clean

help: ## list the targets
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-8s %s\n", $$1, $$2}'

# Two stamps, so that `make demo` does not wait for linters.
$(VENV)/.demo: pyproject.toml
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade "pip>=25.1"
	@echo "installing stem-agent into $(VENV) ..."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ".[demo]"
	@touch $@

$(VENV)/.dev: $(VENV)/.demo
	@echo "installing the development tools into $(VENV) ..."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --group dev
	@touch $@

# Debian's Prometheus and promtool, unpacked and not installed, for the tests that hold the exposition up to them.
# Where apt has none, or there is no apt, those tests are skipped.
$(VENV)/.debian:
	@mkdir -p $(VENV)/debian
	@cd $(VENV)/debian && { { apt-get download -qq prometheus || { apt-get update -qq && apt-get download -qq prometheus; }; } \
		&& dpkg -x prometheus_*.deb . && rm prometheus_*.deb; } >/dev/null 2>&1 \
		|| echo "no Debian package of prometheus to be had: the tests that need it are skipped"
	@touch $@

demo: $(VENV)/.demo ## the main job on an embedded Valkey; ARGS="--duration 20s"
	@$(BIN)/stem-agent demo $(ARGS)

test: $(VENV)/.dev $(VENV)/.debian ## all tests, on a real Valkey and a real OTLP server; ARGS="-k name"
	@$(BIN)/python -m pytest -n auto $(ARGS)

check: $(VENV)/.dev ## ruff, mypy strict, import layers, generated tables, schema and renders
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m agent.options --check
	$(BIN)/python -m agent.schema --check
	$(BIN)/python -m tests.benchmarks.report --check
	$(BIN)/python -m tests.fidelity.report --check
	$(BIN)/python -m tests.fidelity.tail --check
	$(BIN)/python -m tests.chaos.report --check
	$(BIN)/python -m tests.helm.readme --check
	$(BIN)/python -m tests.helm.golden --check

format: $(VENV)/.dev ## let ruff format and mend what it can; write generated tables and schema
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .
	$(BIN)/python -m agent.options --write
	$(BIN)/python -m agent.schema --write
	$(BIN)/python -m tests.benchmarks.report --write
	$(BIN)/python -m tests.fidelity.report --write
	$(BIN)/python -m tests.fidelity.tail --keep
	$(BIN)/python -m tests.chaos.report --write
	$(BIN)/python -m tests.helm.readme --write
	$(BIN)/python -m tests.helm.golden --write

bench: $(VENV)/.dev ## CPU per signal and memory, beside two yardsticks, in about 2 minutes; ARGS="--write" keeps them
	@$(BIN)/python -m tests.benchmarks.bench $(ARGS)

soak: $(VENV)/.dev ## 10 minutes at a steady rate: growth of memory, and loss; ARGS="--rate 2000 --minutes 30"
	@$(BIN)/python -m tests.benchmarks.soak $(ARGS)

fidelity-tail: $(VENV)/.dev ## how true what is read of a fleet without signals is, in about 4 minutes; ARGS="--rate 1000"
	@$(BIN)/python -m tests.fidelity.tail $(ARGS)

fidelity: $(VENV)/.dev ## how true everything told is while things go wrong, in about 5 minutes; ARGS="--scenario skew"
	@$(BIN)/python -m tests.fidelity.run $(ARGS)

chaos: $(VENV)/.dev ## everything goes wrong at random, 300 kills; ends with an exact ledger, in about 4 minutes; ARGS="--seed 7"
	@$(BIN)/python -m tests.chaos.run $(ARGS)

lock: $(VENV)/.dev ## lock what the image is made of to the newest versions that pyproject.toml takes, by hash
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	@$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --upgrade --generate-hashes --no-header --no-annotate \
		--output-file helm/requirements.txt pyproject.toml
	@echo 'hatchling>=1.26' | $(BIN)/uv pip compile --quiet --universal --python-version 3.11 --upgrade --generate-hashes \
		--no-header --no-annotate --output-file helm/build-requirements.txt -

picture: $(VENV)/.dev ## rewrite the README's picture, .github/demo.svg, from a real run on a real terminal
	@$(BIN)/python -m tests.picture

clean: ## forget the environment and the caches
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache build dist
