# Bare `make` lists the targets. Everything runs as root (eBPF and network namespaces) on Debian 12.
#   make unit ARGS="-k service"     arguments for pytest
#   make bench BENCH=packet         one group of benchmarks
#   make vm KERNEL=6.12             one kernel

BIN := .venv/bin
PYTEST := $(BIN)/pytest
ARGS ?=
BENCH ?=
KERNEL ?=

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help setup demo test lint unit golden golden-update prog netns vm bench clean

help: ## this list
	@sed -nE 's/^([a-z-]+):[^#]*## (.*)/\1\t\2/p' $(MAKEFILE_LIST) | expand -t 16

setup: ## install what is missing: Debian packages, .venv, this project (editable)
	@.ci/setup.sh run test

demo: ## two nodes on this machine, real traffic through a service, and everything taken down again
	@.ci/setup.sh run
	@$(BIN)/ebpfnet lab demo

test: setup lint unit golden prog netns ## set-up, lint, and every rung but vm
	@echo "All rungs of this machine's own kernel are done; 'make vm' runs them under Debian's 6.1 and 6.12."

lint: setup ## ruff, mypy, import-linter, clang-format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache --no-logo
	clang-format --dry-run -Werror $$(find bpf -name kernel -prune -o -name '*.[ch]' -print)

unit: setup ## one function, one assertion; no root
	$(PYTEST) tests/unit $(ARGS)

golden: setup ## cluster objects in, the dump of the maps out; no root
	$(PYTEST) tests/golden $(ARGS)

golden-update: setup ## write what the golden tests saw as what they want; then read the diff
	EBPFNET_GOLDEN_UPDATE=1 $(PYTEST) tests/golden $(ARGS)

prog: setup ## packets through the loaded programs
	$(PYTEST) tests/prog $(ARGS)

netns: setup ## real sockets between pods of a lab cluster
	$(PYTEST) tests/netns $(ARGS)

vm: setup ## prog and one netns test under Debian's kernels 6.1 and 6.12 (software emulation: minutes)
	@.ci/setup.sh run vm
	@$(BIN)/python -m vm.run $(KERNEL)

bench: setup ## figures against their bounds and rivals; writes build/bench.json
	@$(BIN)/python -m tests.bench $(BENCH)

clean: ## remove what was built or downloaded here, .venv included
	git clean -qdfX
