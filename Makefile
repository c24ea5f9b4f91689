# `make demo` and `make test` set up all they need in .venv; nothing has to be activated.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/installed

.DEFAULT_GOAL := help
.PHONY: help install setup demo test test-old-cpu test-busy test-faults lint check kernels tools format fix coverage references pictures screenshots vendor docs bench bench-quality bench-cells bench-theory prior sbom lock rules dist test-import clean

help: ## show this list
	@grep -hE '^[a-z -]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 16

# pip, not another installer: torch's CPU build is found through pip's own configuration
$(STAMP): pyproject.toml constraints.txt
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@echo "installing longwatch and its tools into .venv (torch is large; once)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt torch
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@touch $@

install setup: $(STAMP) ## longwatch and its tests into .venv; the other targets do that, too

demo: $(STAMP) ## replay bundled real data through the whole pipeline
	@$(BIN)/longwatch demo

test: $(STAMP) ## lint, types, import contracts and all tests, against real servers
	@$(MAKE) --no-print-directory -j 2 lint kernels tools
	@$(BIN)/python -m pytest -n 3 --dist loadfile --no-loadscope-reorder $(ARGS)  # servers are waited for most of the time

test-old-cpu: $(STAMP) ## the tests as on an old processor: other kernels, which round differently
	@$(BIN)/python -m tests.machine --old $(MAKE) --no-print-directory test

test-busy: $(STAMP) ## the tests beside two processes that burn a core each
	@$(BIN)/python -m tests.machine --busy $(MAKE) --no-print-directory test

test-faults: $(STAMP) tools ## the long forms: 100 kill -9 under load, outages, floods, fuzz, half an hour of all at once (under two hours)
	@LONGWATCH_FAULTS=1 $(BIN)/python -m pytest tests/faults -s $(ARGS)

coverage: $(STAMP) kernels tools ## all tests with their coverage, branches counted: by room, and by line in build/coverage.html
	@rm -rf build/coverage* && $(BIN)/python -m pytest -n 3 --dist loadfile --no-loadscope-reorder --cov --cov-report= $(ARGS)
	@$(BIN)/python -m tests.coverage_by_room

references: $(STAMP) ## the references that are made from the code: docs/settings.md, metrics.md, formats.md
	@$(BIN)/python -m docs.references

pictures: $(STAMP) ## the pictures of docs/scoring.md, drawn from what the engine makes of small series
	@$(BIN)/python -m docs.references.pictures

screenshots: $(STAMP) ## pictures of the page, docs/images/page-*.png, from the demo's data in headless Chromium
	@$(BIN)/python -m tests.screenshots

vendor: $(STAMP) ## the page's charting library from npm, at its pinned version
	@$(BIN)/python -m tests.vendor_page

docs: $(STAMP) ## the documents as a site, build/site/index.html; a broken link is an error
	@NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet
	@echo build/site/index.html

lint check: $(STAMP) ## ruff, mypy, import contracts
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check --quiet .
	@$(BIN)/mypy
	@$(BIN)/lint-imports

kernels: $(STAMP)
	@$(BIN)/python -m tests.kernels

tools:
	@sh tests/fetch_tools.sh

format fix: $(STAMP) ## put the code into shape
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

bench: $(STAMP) ## engine, network and ingest, side by side
	@$(BIN)/python -m tests.bench.bench_all

bench-quality: $(STAMP) ## public sets and the behaviour panel, beside other detectors (hours; ARGS='nab asd --peers': minutes)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --requirement tests/bench/requirements.txt || echo "no peers to be had"
	@$(BIN)/python -m tests.bench.quality $(ARGS)

bench-cells: $(STAMP) ## each cell through the demo: incidents, likelihood, speed and bytes side by side
	@$(BIN)/python -m tests.bench.cells

bench-theory: $(STAMP) ## adding problem, delayed echo, gradients: the figures of docs/theory.md (about 25 minutes)
	@$(BIN)/python -m tests.bench.theory

prior: $(STAMP) ## make the shipped networks again from synthetic series (minutes on one core each)
	@MALLOC_MMAP_THRESHOLD_=1073741824 MALLOC_TRIM_THRESHOLD_=4294967296 $(BIN)/python -m tests.bench.make_priors

sbom: $(STAMP) ## list what an installation consists of, as CycloneDX JSON: sbom.json
	@$(BIN)/cyclonedx-py environment $(BIN)/python --pyproject pyproject.toml --output-reproducible --of JSON -o sbom.json

# What an index calls 2.13.0+cpu is 2.13.0 here, so that every index has it; CUDA's own packages are torch's to choose.
lock: TORCH ?= $(shell sed -n 's/^torch==//p' constraints.txt)
lock: ## renew constraints.txt within what pyproject.toml allows; TORCH=2.14.1 for another torch. Then: make test
	@rm -rf build/lock && $(PYTHON) -m venv build/lock
	@build/lock/bin/python -m pip install --quiet --disable-pip-version-check torch==$(TORCH)
	@build/lock/bin/python -m pip install --quiet --disable-pip-version-check '.[dev]'
	@{ sed -n '/^#/p' constraints.txt; build/lock/bin/python -m pip freeze --all --exclude pip --exclude longwatch \
	    | sed -E '/^(nvidia|cuda)-|^triton/d; s/\+[a-z0-9.]+$$//'; } > build/constraints.txt
	@mv build/constraints.txt constraints.txt && rm -rf build/lock

RULE := deploy/kubernetes/components/prometheusrule/prometheusrule.yaml
rules: ## the Prometheus operator's form of deploy/prometheus/longwatch.rules.yaml
	@{ sed '/^spec:/q' $(RULE); sed 's/^./  &/' deploy/prometheus/longwatch.rules.yaml; } > $(RULE).new && mv $(RULE).new $(RULE)

dist: $(STAMP) ## sdist and wheel, in dist/
	@rm -rf dist && $(BIN)/python -m pip wheel --quiet --disable-pip-version-check --no-deps --wheel-dir dist .
	@$(BIN)/python -c 'from setuptools.build_meta import build_sdist; print(build_sdist("dist"))'

test-import: ## install into the newest Python to be found, without torch, and import all that goes without it
	@sh tests/import_test.sh

clean: ## remove what was built
	rm -rf .venv .tools build dist out *.egg-info
