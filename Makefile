# `make quickstart` and `make test` need Python 3.11 or newer and nothing else: they make their own environment in .venv.
.DEFAULT_GOAL := help
.PHONY: help setup quickstart test-fast test test-all mutants fixtures examples docs

help:
	@echo "make quickstart   set up, then train a small reasoning model, distil it, and write a report"
	@echo "make test-fast    set up, then check style, types and what takes some four minutes on two cores"
	@echo "make test         the same, with all tests that take less than 2.5 core-seconds: 15 minutes of one core"
	@echo "make test-all     every test: random kills, whole pages of docs, browsers too"
	@echo "make fixtures     train the small DeepSeek-V3.2 of tests/fixtures again (about ten minutes of one core)"
	@echo "make mutants      set up, then put known bugs back one at a time, and see that a test catches each"
	@echo "make examples     train the quickstart on five seeds and grade the examples of the docs (an hour)"
	@echo "make docs         set up, then build the documentation site: site/index.html"
	@echo "make setup        only set up: .venv/bin/rorqual"

setup:
	@scripts/setup.sh

quickstart:
	@scripts/setup.sh
	@.venv/bin/rorqual quickstart

test-fast:
	@scripts/test.sh fast

test:
	@scripts/test.sh

test-all:
	@scripts/test.sh all

docs:
	@scripts/docs.sh

mutants:
	@scripts/setup.sh test
	@OMP_NUM_THREADS=1 .venv/bin/python scripts/mutants.py --workers 2

fixtures:
	@scripts/setup.sh test
	@OMP_NUM_THREADS=1 .venv/bin/python scripts/fixtures.py

examples:
	@scripts/setup.sh
	@.venv/bin/python scripts/examples.py
