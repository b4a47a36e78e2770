# `make quickstart` and `make test` need Python 3.11 or newer and nothing else: they make their own environment in .venv.
.DEFAULT_GOAL := help
.PHONY: help setup quickstart test mutants docs

help:
	@echo "make quickstart   set up, then build, train, reinforce, measure and report a small reasoning model"
	@echo "make test         set up, then run every check: style, types, tests"
	@echo "make mutants      set up, then put known bugs back one at a time, and see that a test catches each"
	@echo "make docs         set up, then build the documentation site: site/index.html"
	@echo "make setup        only set up: .venv/bin/rorqual"

setup:
	@scripts/setup.sh

quickstart:
	@scripts/setup.sh
	@.venv/bin/rorqual quickstart

test:
	@scripts/test.sh

docs:
	@scripts/docs.sh

mutants:
	@scripts/setup.sh test
	@OMP_NUM_THREADS=1 .venv/bin/python scripts/mutants.py
