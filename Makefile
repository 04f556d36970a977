# One runner for everything.  `make` alone lists what there is.

PYTHON_TREES := $(wildcard src tests tools bench demo) $(if $(wildcard scripts/*.py),scripts)
RUN := .venv/bin/python -m

# How long `make fuzz` takes for each target, and how many run at a time.
SECONDS ?= 600
JOBS ?= 2

# What `make demo` is shown with; empty means what needs no other program.
TOKEN ?=
DATABASE ?=
ELEMENT ?=
GATEWAY ?=

.DEFAULT_GOAL := help
.PHONY: help demo test check bench soak fuzz lock clean install

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "%-8s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: ## a production line on this machine; TOKEN=softhsm2 DATABASE=postgresql for the real thing, ELEMENT=scp03 for secure elements, GATEWAY=1 for the field
	@scripts/install --runtime $(if $(TOKEN),--with $(TOKEN)) $(if $(DATABASE),--with $(DATABASE)) $(if $(filter scp03,$(ELEMENT)),--with scp03) $(if $(GATEWAY),--with gateway)
	@.venv/bin/python demo/line.py $(if $(TOKEN),--token $(TOKEN)) $(if $(DATABASE),--database $(DATABASE)) $(if $(ELEMENT),--element $(ELEMENT)) $(if $(GATEWAY),--gateway)

# The tests start the same programs a thousand times: they are compiled once, whatever is set outside.
test soak: export PYTHONDONTWRITEBYTECODE :=

test: ## everything a change has to pass: Debian packages (for root), make check, all tests
	@scripts/install --system
	@$(MAKE) --no-print-directory check
	scripts/in-memory $(RUN) pytest --numprocesses auto --dist loadfile --no-loadscope-reorder

check: install ## format, lint, types and import contracts
	$(RUN) ruff format --check $(PYTHON_TREES)
	$(RUN) ruff check $(PYTHON_TREES)
	$(RUN) mypy $(PYTHON_TREES)
	.venv/bin/lint-imports --no-logo

bench: ## the benchmark, beside the certificate authorities of others (Debian packages for root)
	@scripts/install --bench
	$(RUN) bench

soak: ## the tests that take minutes
	@scripts/install --system --bench
	$(RUN) pytest -m soak

fuzz: install ## every reader of foreign octets, SECONDS=600 each, JOBS=2 at a time (docs/testing.md)
	$(RUN) tests.fuzz --all --seconds $(SECONDS) --jobs $(JOBS)

lock: ## write requirements/*.txt anew; LOCK=--upgrade takes the newest versions
	scripts/lock $(LOCK)

install: ## make .venv as the lock says
	@scripts/install

clean: ## remove what can be made again
	rm -rf .venv .tools .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache build dist
	find $(PYTHON_TREES) -name __pycache__ -type d -prune -exec rm -rf {} +
