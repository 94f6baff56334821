# Python ≥ 3.10, pip and make are all that must be there; the rest is installed into $(VENV).
# PYTHON makes the virtual environment; `check` runs the tools of the PYTHON that it is given.
VENV ?= .venv
PYTHON ?= python3
# The tests that `check` runs, as an expression of pytest's markers.
MARKS ?= not long

.DEFAULT_GOAL := help
.PHONY: help venv demo bench docs peers test test-all check fuzz coverage mutation clean

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(firstword $(MAKEFILE_LIST)) | expand -t 10

venv: $(VENV)/.installed-dev ## install uotod and every tool into VENV (.venv)

demo: $(VENV)/.installed-examples ## train with unbalanced transport and with Hungarian matching, a minute each
	$(VENV)/bin/python examples/demo.py

bench: $(VENV)/.installed-dev ## time the criterion side by side with the peers that are installed, and how it scales
	@mkdir -p runs
	$(VENV)/bin/python -m benchmarks --json runs/bench.json
	$(VENV)/bin/python -m benchmarks.scaling --json runs/scaling.json
	$(VENV)/bin/python -m benchmarks.profile --json runs/profile.json

docs: $(VENV)/.installed-docs ## draw the pictures and build the documentation into docs/_build
	$(VENV)/bin/python -m sphinx -W --keep-going docs docs/_build

peers: .peers/packages.stamp .peers/uotod.stamp ## fetch the libraries that tests and benchmarks compare with into .peers

test: $(VENV)/.installed-dev peers ## run the linters, the type checker and the tests, but for the long ones
	$(MAKE) check PYTHON=$(VENV)/bin/python

test-all: $(VENV)/.installed-dev peers ## the same with the long tests
	$(MAKE) check PYTHON=$(VENV)/bin/python MARKS=

check: ## what `test` runs, with the tools that PYTHON has, without installing or fetching anything
	$(PYTHON) -m ruff check
	$(PYTHON) -m ruff format --check
	$(PYTHON) -m mypy
	$(PYTHON) -m pytest -n auto --dist worksteal -m "$(MARKS)"

# Options of `fuzz`: how many images each property tries with each matcher.
EXAMPLES ?= 100000

fuzz: $(VENV)/.installed-dev ## try the properties of tests/properties on EXAMPLES (100000) random images each
	HYPOTHESIS_PROFILE=fuzz EXAMPLES=$(EXAMPLES) $(VENV)/bin/python -m pytest -n auto --dist worksteal tests/properties

coverage: $(VENV)/.installed-dev ## measure which branches of the core the tests take: at least 96 %
	$(VENV)/bin/python -m coverage erase
	$(VENV)/bin/python -m coverage run -m pytest -n auto --dist worksteal -m "$(MARKS)" --ignore=tests/properties
	$(VENV)/bin/python -m coverage combine
	$(VENV)/bin/python -m coverage report --fail-under=96

mutation: $(VENV)/.installed-dev ## run tests on 150 mutants of the core, those that have no result yet; coverage chooses the tests
	$(VENV)/bin/python -m benchmarks.mutation --json runs/mutation.jsonl

clean: ## remove the default virtual environment, caches, builds and the demo's results
	rm -rf .venv .peers .mypy_cache .pytest_cache .ruff_cache build dist *.egg-info runs/demo docs/_build docs/generated
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# One stamp a set of extras: nothing is installed twice unless what to install has changed.
$(VENV)/.installed-%: pyproject.toml constraints.txt | $(VENV)/bin/pip
	$(VENV)/bin/python -m pip install -c constraints.txt -e ".[$*]"
	@touch $@

# Beside the environment, never in it: the original shares our name, and the others want packages that nobody else needs.
# A new environment may have another Python, hence fetches them anew. Without a network the old ones stay, if any.
.peers/%.stamp: $(VENV)/bin/pip
	@mkdir -p .peers && rm -rf .peers/$*.new
	@if $(VENV)/bin/python -m pip install --quiet --retries 1 --no-deps -c constraints.txt --target .peers/$*.new $(WANTED) \
			2> .peers/$*.log; \
	then rm -rf .peers/$* && mv .peers/$*.new .peers/$* && touch $@; \
	else echo ".peers/$*: not fetched (.peers/$*.log says why): what needs it is left out until make peers succeeds"; fi

.peers/packages.stamp: peers.txt
.peers/packages.stamp: WANTED = -r peers.txt
.peers/uotod.stamp: WANTED = "uotod==0.3.*"

# pip is what `venv` writes last: an interrupted environment is made again.
$(VENV)/bin/pip:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
		{ echo "uotod needs Python 3.10 or later: make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
