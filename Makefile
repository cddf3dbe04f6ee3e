# What a developer does with Bucatini. `make` alone builds; `make help` lists the targets.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
MAKEFLAGS += --no-builtin-rules --no-print-directory
.DELETE_ON_ERROR:

VENV := .venv
PY := $(VENV)/bin/python
# The linters call one another (cython-lint calls pycodestyle): theirs is found first.
export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)
export PIP_DISABLE_PIP_VERSION_CHECK := 1
export PIP_ROOT_USER_ACTION := ignore

# release, debug: how the compiled modules below src/ are built. (asan and coverage have a place of their own.)
BUCATINI_BUILD ?= release

COMPILED := $(wildcard src/bucatini/*/*.pyx src/bucatini/*/*.pxd src/bucatini/*.pxd tests/fuzz/*.pyx)
STAMP := $(VENV)/.installed
BUILT := build/.built-$(BUCATINI_BUILD)
PYTEST := $(PY) -m pytest

.PHONY: build run test lint unit system bench micro soak cases attacks isolation churn asan fuzz coverage man clean help packages
.DEFAULT_GOAL := build

help: ## this list
	@sed -nE 's/^([a-z]+):[^#]*## (.*)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 20

build: ## virtual environment, editable install, compiled modules; only what is out of date
	@mkdir -p build
	@# One build at a time: two would write the same objects.
	@flock build/.lock $(MAKE) $(BUILT)
	@# Whoever runs the programs may not be allowed to keep the bytecode, and would pay for it at each start
	@$(PY) -m compileall -q src/bucatini

$(STAMP): pyproject.toml tools/python tools/packages
	tools/packages --build
	python=$$(tools/python) && { [ -x $(PY) ] && $(PY) -c '' || "$$python" -m venv --clear $(VENV); }
	$(PY) -m pip install --quiet --upgrade 'pip>=25.1'
	$(PY) -m pip install --quiet --group dev
	touch $@

# Objects of another mode are newer than this mode's C files, so a change of mode compiles everything.
$(BUILT): $(STAMP) setup.py $(COMPILED)
	BUCATINI_BUILD=$(BUCATINI_BUILD) $(PY) setup.py --quiet build_ext --inplace \
	    $(if $(filter-out $(BUILT),$(wildcard build/.built-*)),--force)
	[ $(VENV)/bin/pasta -nt pyproject.toml ] && [ $(VENV)/bin/bucatini -nt pyproject.toml ] || \
	    BUCATINI_BUILD=$(BUCATINI_BUILD) $(PY) -m pip install --quiet --no-build-isolation --no-deps --editable .
	rm -f build/.built-*
	touch $@

run: build ## a namespace with full connectivity, explained (= bucatini demo)
	@$(VENV)/bin/bucatini demo

packages:
	@tools/packages --test

test: build packages lint ## lint, unit, property and system tests
	$(PYTEST) tests

unit: build ## unit and property tests only
	$(PYTEST) tests/unit

system: build packages ## system tests only
	$(PYTEST) tests/system

lint: $(STAMP) ## formatting, linters, types, layers, spelling, file lengths
	@# All of them, whatever the first one says.
	@failed=; check() { echo "$$*"; "$$@" || failed="$$failed $$1"; }; \
	check ruff format --check .; \
	check ruff check .; \
	check cython-lint src/bucatini tests/fuzz; \
	check mypy --strict src/bucatini; \
	check codespell; \
	check tools/syscalls --check; \
	check $(PYTEST) -q tests/unit/test_layers.py tests/unit/test_theory.py; \
	[ -z "$$failed" ] || { echo "lint: failed:$$failed" >&2; exit 1; }

# make bench CELLS=tcp-out,crr SYSTEMS=bucatini,pasta RUNS=3 PEERS=folder BASE=earlier.json OUT=docs/performance.json
OUT ?= $(if $(CELLS)$(SYSTEMS),build/bench.json,docs/performance.json)
bench: build packages ## Bucatini beside the peers of $$PEERS or PATH: docs/performance.{json,md,svg}; root, takes minutes
	$(VENV)/bin/bucatini bench --full --json $(OUT) $(if $(PEERS),--peers $(PEERS)) $(if $(CELLS),--cells $(CELLS)) \
	    $(if $(SYSTEMS),--systems $(SYSTEMS)) $(if $(RUNS),--runs $(RUNS)) $(if $(BASE),--base $(BASE))

soak: build packages ## 100,000 connections over a link that makes faults, every byte checked (FLOWS=, SEED=), and 5,000 of the model
	BUCATINI_SOAK_FLOWS=$(or $(FLOWS),100000) BUCATINI_SOAK_SEED=$(or $(SEED),1) BUCATINI_MODEL=$(or $(MODEL),5000) \
	    $(PYTEST) -rP --hypothesis-show-statistics tests/system/test_soak.py tests/unit/datapath/test_tcp_model.py

cases: build packages ## docs/cases.md: which tests there are for each known case, and how they end; root
	$(PYTEST) --cases=docs/cases.md tests

churn: build packages ## figures of an hour of connections that come and go, and of as many at once as there are descriptors for
	$(PYTEST) -rP tests/system/test_memory.py

attacks: build packages ## docs/attacks.md: what attacks do to an instance and to those it serves; root
	$(PYTEST) --attacks=docs/attacks.md tests/system/test_attacks.py

isolation: build packages ## docs/isolation.md: what isolation costs, in pairs with and without it; root, takes ten minutes
	$(PY) -m bucatini.bench.isolation docs/isolation.md

micro: build ## micro-benchmarks of the packet path's pieces (pyperf); OPTIONS="-o file.json" keeps the result
	$(PY) -m bucatini.bench.micro $(OPTIONS)

# The sanitized modules live below build/asan; src/ keeps its own. Only the program's processes are preloaded in the
# system tests (tests/system/installation.py), and every report of theirs fails the test that caused it.
ASAN_LIBS = $(shell gcc -print-file-name=libasan.so) $(shell gcc -print-file-name=libubsan.so)
asan: build packages ## unit and system tests against a build with address and undefined-behaviour sanitizers
	BUCATINI_BUILD=asan $(PY) setup.py --quiet build --build-base build/asan/base --build-lib build/asan/lib
	LD_PRELOAD="$(ASAN_LIBS)" PYTHONMALLOC=malloc PYTHONPATH=$(CURDIR)/build/asan/lib \
	    ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=halt_on_error=1:print_stacktrace=1 BUCATINI_TEST_PACKAGE=$(CURDIR)/build/asan/lib \
	    $(PYTEST) -m 'not lint and not release' tests/unit
	BUCATINI_TEST_PACKAGE=$(CURDIR)/build/asan/lib BUCATINI_TEST_PRELOAD="$(ASAN_LIBS)" $(PYTEST) -m 'not release' tests/system

# libFuzzer sees the compiled modules (clang, below build/fuzz) and, by atheris, Python's. The corpora in the repository
# are what a run begins with; KEEP=1 writes back what it found, without what says nothing new.
FUZZ = LD_PRELOAD=$$($(PY) -c 'import atheris; print(atheris.path())')/asan_with_fuzzer.so \
    PYTHONPATH=$(CURDIR)/build/fuzz/lib ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=print_stacktrace=1 \
    $(PY) -s tests/fuzz/run.py
TARGETS ?= $(basename $(notdir $(wildcard tests/fuzz/corpus/*.hex)))
fuzz: build ## the fuzz targets under the sanitizers, 20 s each (TARGETS="tcp dns", SECONDS=, RUNS=, BLIND=1, KEEP=1)
	tools/packages clang
	$(PY) -m pip install --quiet --group fuzz
	CC=clang BUCATINI_BUILD=fuzz $(PY) setup.py --quiet build --build-base build/fuzz/base --build-lib build/fuzz/lib
	@for target in $(TARGETS); do \
	    echo "fuzz: $$target"; \
	    $(FUZZ) $(if $(BLIND),--blind) $$target build/fuzz/corpus/$$target \
	        $(if $(RUNS),-runs=$(RUNS),-max_total_time=$(or $(SECONDS),20)) >build/fuzz/$$target.log 2>&1 || \
	        { tail -50 build/fuzz/$$target.log; exit 1; }; \
	    grep -E 'cov: .* DONE|DONE|number_of_executed_units' build/fuzz/$$target.log; \
	    [ -z "$(KEEP)" ] || { \
	        rm -rf build/fuzz/small && mkdir build/fuzz/small; \
	        $(FUZZ) $$target build/fuzz/small -merge=1 build/fuzz/corpus/$$target >build/fuzz/merge.log 2>&1; \
	        $(PY) tests/fuzz/run.py --keep $$target build/fuzz/small >build/fuzz/$$target.hex; \
	        mv build/fuzz/$$target.hex tests/fuzz/corpus/; \
	    }; \
	done

coverage: build ## line coverage of the unit tests, compiled modules included: build/coverage/html
	BUCATINI_BUILD=coverage $(PY) setup.py --quiet build --build-base build/coverage/base --build-lib build/coverage/lib
	PYTHONPATH=$(CURDIR)/build/coverage/lib BUCATINI_TEST_PACKAGE=$(CURDIR)/build/coverage/lib \
	    $(PY) -m coverage run -m pytest -m 'not lint and not release' tests/unit
	$(PY) -m coverage report
	$(PY) -m coverage html --quiet --directory build/coverage/html

man: build ## docs/man/*.1, from the option table
	mkdir -p docs/man
	for name in pasta passt; do \
	    $(PY) -m bucatini.cli.manpage $$name >docs/man/$$name.1; \
	    ! LC_ALL=C.UTF-8 man --warnings -l -Tutf8 -Z docs/man/$$name.1 2>&1 >/dev/null | grep .; \
	done

clean: ## everything that can be made again
	rm -rf build dist src/*.egg-info $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis .coverage
	find src tests \( -name '*.so' -o -name __pycache__ \) -prune -exec rm -rf {} +
	find src tests -name '*.pyx' -print0 | while IFS= read -r -d '' file; do rm -f "$${file%.pyx}.c"; done
