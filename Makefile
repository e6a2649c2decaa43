# Everything one does with a checkout of backupd; `make` alone says what there is.

PYTHON ?= python3
VIDEO  ?= examples/clip.mp4
SEEDS  ?= 2000
export VIDEO

BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check -qq
COMPILE = $(BIN)/uv pip compile --quiet --no-config --upgrade --universal --python-version 3.11 \
	--only-binary :all: --generate-hashes --no-header --no-emit-index-url --no-emit-find-links

.PHONY: help venv test simulate torture mutations protections demo run fuzz bench bench-growth pins clean
.DEFAULT_GOAL := help

help:
	@echo 'make demo     back a real video up from one server to another, and get it back'
	@echo '              (VIDEO=path takes yours)'
	@echo 'make test     every check and every test'
	@echo 'make simulate whole daemons on one clock, SEEDS=n histories of faults'
	@echo 'make torture  100000 of these, 3000 walks beside the model, then real daemons,'
	@echo '              killed and cheated;'
	@echo '              SEED=n repeats a run, ONLY="kills long" runs some of its sections'
	@echo 'make mutations does the suite find small faults? puts each of a list into a copy'
	@echo 'make protections  each protection is taken out, and its tests have to fail'
	@echo 'make run      one server in the foreground, on http://localhost:3000'
	@echo 'make fuzz     100,000 requests that nobody should send; SEED=n repeats a run'
	@echo 'make bench    the measurements, in one table'
	@echo 'make bench-growth   how cost grows, to 16 GiB and a million: tables and plots'
	@echo 'make venv     .venv with everything pinned; the others make it when needed'
	@echo 'make pins     compile requirements*.in into requirements*.txt, newest versions'
	@echo 'make clean    remove all that make has made'

venv: .venv/ready

# Made anew when a pin changes: what is not needed any more goes too.
.venv/packages: requirements-dev.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo 'backupd needs Python 3.11 or newer: make PYTHON=/path/to/python3'; exit 1; }
	@echo 'Making .venv ...'
	@$(PYTHON) -m venv --clear .venv
	@$(PIP) install --require-hashes --only-binary :all: -r requirements-dev.txt
	@touch $@

.venv/ready: .venv/packages pyproject.toml requirements.in
	@$(PIP) install --no-deps --no-build-isolation -e .
	@touch $@

# What consists of SynchronousTestCase passes under trial too; the rest trial does not collect.
test: venv
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy
	@$(BIN)/python -m twisted.trial --reporter=text --temp-directory=build/trial tests
	@$(BIN)/python -m pytest
	@$(BIN)/python -m tests.simulation --seeds $(SEEDS)

simulate: venv
	@$(BIN)/python -m tests.simulation --seeds $(SEEDS)

mutations: venv
	@$(BIN)/python -m tests.simulation.mutate

# Which of the protections would nobody miss?
protections: venv
	@$(BIN)/python -m tests.protections

# Another seed each time, and printed; SEED=n is that one again, ONLY="kills long" some sections.
torture: venv
ifndef ONLY
	@$(BIN)/python -m tests.simulation --seeds 100000
	@$(BIN)/python -m tests.simulation.walks --examples 3000 $(if $(SEED),--seed $(SEED))
endif
	@$(BIN)/python -m tests.torture $(if $(SEED),--seed $(SEED)) $(if $(ONLY),--only $(ONLY))

demo: venv
	@$(BIN)/python examples/demo.py "$$VIDEO"

run: venv
	@$(BIN)/twistd --nodaemon --pidfile= --python backupd.tac

# Another 100,000 requests that nobody should send; SEED=n repeats a run.
fuzz: venv
	@$(BIN)/python -m tests.fuzz.run --requests 60000 $(if $(SEED),--seed $(SEED))
	@$(BIN)/python -m tests.fuzz.run --requests 40000 --paired $(if $(SEED),--seed $(SEED))

bench: venv
	@$(BIN)/python -m bench

bench-growth: venv
	@$(BIN)/python -m bench.growth

pins: venv
	@$(PIP) install uv
	@$(COMPILE) requirements.in -o requirements.txt
	@$(COMPILE) requirements-dev.in -c requirements.txt -o requirements-dev.txt
	@echo 'requirements.txt and requirements-dev.txt are up to date.'

clean:
	@rm -rf .venv build dist demo-data bench-data backupd.egg-info _trial_temp* \
		examples/axios/node_modules tests/clients/node_modules
	@rm -rf .mypy_cache .ruff_cache .pytest_cache .hypothesis twistd.pid twistd.log
	@find . -name __pycache__ -prune -exec rm -rf {} +
	@find . -name dropin.cache -delete
