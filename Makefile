# Everything runs in the virtual environment .venv, which is made on first use (some minutes, about 2 GB).

PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready
BENCH ?= rounds
BUNDLE = build/bundle
MEASURE ?= --help
ENDORSEMENTS ?=
PROTOS := $(sort $(wildcard protos/quorate/v1/*.proto))
# Whole files to a worker, the longest first (tests/conftest.py). Three, though a machine may have two cores: what starts
# daemons waits for them much of its time.
PYTEST = $(BIN)/pytest -q -n 3 --dist loadfile --no-loadscope-reorder
INNER = tests/test_project.py tests/protos tests/client tests/server tests/operator tests/attacks tests/demo
PROTOC = cd protos && ../$(BIN)/python -m grpc_tools.protoc -I.

# Flower calls home unless it is told not to.
export FLWR_TELEMETRY_ENABLED := 0
export FLWR_DISABLE_UPDATE_CHECK := 1

.PHONY: help setup demo demo-fraud demo-collaborative test test-all lint generated protos docs bench bundle bundle-check \
	image-server image-operator image-site image-aggregator \
	measurements hardware-smoke audit clean
.DEFAULT_GOAL := help

help: ## Show this list
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 20

setup: $(READY) ## Make the virtual environment with everything in it

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Quorate needs Python 3.11 or newer: make PYTHON=python3.11")'
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@# First, so that nothing else can decide for another build of it.
	@echo "Installing PyTorch (a minute or two) ..."
	@$(BIN)/pip install -qq --disable-pip-version-check --constraint constraints.txt torch==2.13.0
	@echo "Installing Quorate and what it needs (another minute) ..."
	@$(BIN)/pip install -qq --disable-pip-version-check --constraint constraints.txt --editable '.[server,site,demo,dev,measure]'
	@touch $@

demo: setup ## Four hospitals train a model on this machine
	@$(BIN)/python -m demo

demo-fraud: setup ## Four insurers look for fraud, on synthetic claims and in other ways
	@$(BIN)/python -m demo.fraud

demo-collaborative: setup ## Four hospitals with synthetic data and noise in two places, and without each
	@$(BIN)/python -m demo.collaborative

test: setup ## Run the tests but the slow ones: real daemons as processes, Flower's apps, the docs' commands, benches
	@$(PYTEST) $(INNER)

test-all: setup ## Run all tests
	@$(PYTEST)

lint: setup ## Style, types, and who may import whom
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports

generated: setup ## Check that generated code and pages are fresh
	@rm -rf build/generated && mkdir -p build/generated
	@$(PROTOC) --python_out=../build/generated --pyi_out=../build/generated --grpc_python_out=../build/generated $(PROTOS:protos/%=%)
	@diff -r -x '__init__.py' -x '__pycache__' -x '*.proto' protos/quorate/v1 build/generated/quorate/v1 \
		|| { echo "The generated code is stale: run \`make protos\`."; exit 1; }
	@$(BIN)/python docs/generate.py --check

protos: setup ## Generate the code of the gRPC services again
	@$(PROTOC) --python_out=. --pyi_out=. --grpc_python_out=. $(PROTOS:protos/%=%)

docs: setup ## Generate docs/reference again
	@$(BIN)/python docs/generate.py

bench: setup ## Measure: make bench BENCH=rounds
	@$(BIN)/python -m bench $(BENCH)

bundle: setup ## Everything that a hospital installs, in one file (QUORATE_SIGNING_KEY: a minisign key to sign it)
	@$(BIN)/pip install -qq --disable-pip-version-check --constraint constraints.txt --editable '.[release]'
	@$(BIN)/python deploy/bundle/build.py $(BUNDLE)
	@$(MAKE) --no-print-directory audit || echo "The bundle was built all the same."

bundle-check: $(BUNDLE) ## Install the bundle where there is no network, and run a study with it
	@$(BIN)/python deploy/bundle/check.py $(BUNDLE)/*.tar

image-server: $(BUNDLE) ## An OCI image of the server, from Debian's packages and the bundle; then run it
	@$(BIN)/python deploy/images/build.py server $(BUNDLE)/*.tar build/images
	@$(BIN)/python deploy/images/check.py server build/images/quorate-server.tar

image-operator: $(BUNDLE) ## The same of the operator's command
	@$(BIN)/python deploy/images/build.py operator $(BUNDLE)/*.tar build/images
	@$(BIN)/python deploy/images/check.py operator build/images/quorate-operator.tar

image-site: $(BUNDLE) ## The same of a site
	@$(BIN)/python deploy/images/build.py site $(BUNDLE)/*.tar build/images
	@$(BIN)/python deploy/images/check.py site build/images/quorate-site.tar

image-aggregator: $(BUNDLE) ## The same of the attested aggregator, and its digest
	@$(BIN)/python deploy/images/build.py aggregator $(BUNDLE)/*.tar build/images
	@$(BIN)/python deploy/images/check.py aggregator build/images/quorate-aggregator.tar
	@$(BIN)/python -m deploy.attestation.measure --image build/images/quorate-aggregator.tar

measurements: setup ## What a study's policy names of an attested aggregator: make measurements MEASURE="--image FILE"
	@$(BIN)/python -m deploy.attestation.measure $(MEASURE)

hardware-smoke: setup ## Make and appraise evidence of this machine, if it has the hardware (ENDORSEMENTS: the vendor's file)
	@$(BIN)/python -m deploy.attestation.hardware_smoke build/hardware-smoke $(ENDORSEMENTS)

$(BUNDLE):
	@$(MAKE) --no-print-directory bundle

audit: setup ## Ask for known weaknesses of the packages that are pinned
	@$(BIN)/pip install -qq --disable-pip-version-check --constraint constraints.txt --editable '.[release]'
	@# Without --strict, packages that the service does not answer for would count as sound.
	@$(BIN)/pip-audit --strict --disable-pip --no-deps --requirement constraints.txt \
		|| { echo "NOT AUDITED, or something was found: see above."; exit 1; }

clean: ## Remove everything that was made here
	rm -rf .venv build dist demo-run .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
