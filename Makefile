# The commands a person needs. Each is sufficient on a fresh machine: what is missing is named, then installed.

PREFIX ?= /usr/local
CNI_BIN_DIR ?= /opt/cni/bin
DESTDIR ?=
# Passed to every cargo command, for example --locked or --offline.
CARGO_FLAGS ?=
export CARGO_FLAGS
# For bench, conformance and runtimes.
BIN ?=
CASE ?=
ROUNDS ?=
OUT ?=
# Why the budgets of instructions are to be written anew, for budget.
REASON ?=
export BIN CASE ROUNDS OUT REASON

PLUGINS := portmap bandwidth firewall tuning
# Where rustup puts cargo, for shells that haven't read its profile yet.
export PATH := $(PATH):$(HOME)/.cargo/bin
export CNI_CHAIN_BIN := $(CURDIR)/bin

.PHONY: help build test lint fmt demo install uninstall notices dist bench microbench budget conformance runtimes schemas fuzz clean
.DEFAULT_GOAL := help

help: ## List these commands
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-11s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
	@echo
	@echo "  install and uninstall take DESTDIR= PREFIX= ($(PREFIX)) CNI_BIN_DIR= ($(CNI_BIN_DIR))"

build: ## Build the five static executables into bin/
	@sh deploy/setup.sh build
	@sh deploy/build.sh

demo: ## Show the whole chain at work in namespaces of its own, leaving the host untouched
	@sh deploy/setup.sh test
	@sh deploy/build.sh
	@cargo run --quiet $(CARGO_FLAGS) -p netns-tests --bin demo

test: ## Run every test: unit, golden and in network namespaces (root)
	@sh deploy/setup.sh test
	@sh deploy/build.sh
	@sh tests/run.sh

lint: ## Check formatting, lints, documentation, licences and scripts
	@sh deploy/setup.sh lint
	cargo fmt --all --check
	cargo clippy $(CARGO_FLAGS) --workspace --all-targets -- -D warnings
	RUSTDOCFLAGS='-D warnings' cargo doc $(CARGO_FLAGS) --workspace --no-deps --document-private-items
	cargo run --quiet $(CARGO_FLAGS) -p netns-tests --bin licences check
	@if cargo deny --version >/dev/null 2>&1; then set -x; cargo deny check bans licenses sources; fi
	@sh tests/lint-scripts.sh

fmt: ## Format the sources
	cargo fmt --all

install: ## Install the plugins into CNI_BIN_DIR and cni-chain into PREFIX/bin
	@test -x bin/portmap || { echo "install: bin/ is empty; run make build first" >&2; exit 1; }
	@sh deploy/install.sh bin "$(DESTDIR)$(CNI_BIN_DIR)" $(PLUGINS)
	@sh deploy/install.sh bin "$(DESTDIR)$(PREFIX)/bin" cni-chain

uninstall: ## Remove what install has put there
	@for name in $(PLUGINS); do rm -fv "$(DESTDIR)$(CNI_BIN_DIR)/$$name"; done
	@rm -fv "$(DESTDIR)$(PREFIX)/bin/cni-chain"

notices: ## Write the notices of everything linked in to build/THIRD-PARTY.txt
	@sh deploy/setup.sh build
	@mkdir -p build
	@cargo run --quiet $(CARGO_FLAGS) -p netns-tests --bin licences notices > build/THIRD-PARTY.txt

dist: build notices ## Pack executables, licences, notices and conflists into dist/
	@sh deploy/dist.sh

bench: ## Measure beside the reference plugins (CASE=name[/item] ROUNDS= BIN=dir:dir OUT=dir, e.g. docs/bench)
	@sh deploy/setup.sh test
	@sh deploy/build.sh
	@cargo run --quiet $(CARGO_FLAGS) -p netns-tests --bin bench

microbench: ## Measure what happens in process: reading a call, planning, encoding (CASE=name)
	@sh deploy/setup.sh build
	@cargo bench --quiet $(CARGO_FLAGS) -p netns-tests --bench inprocess -- $(CASE)

budget: ## Hold each verb to its number of instructions (REASON='why' writes the numbers anew)
	@sh deploy/setup.sh test
	@sh deploy/build.sh
	@cargo run --quiet $(CARGO_FLAGS) -p netns-tests --bin budget

conformance: ## Run the specification's table against bin/ and any other directories (BIN=dir), as Markdown
	@sh deploy/setup.sh test
	@sh deploy/build.sh
	@cargo run --quiet $(CARGO_FLAGS) -p netns-tests --bin conformance -- $(BIN)

schemas: ## Write the JSON Schemas of the configurations to conflists/schema/
	@sh deploy/setup.sh build
	@cargo run --quiet $(CARGO_FLAGS) -p netns-tests --bin schemas

runtimes: ## Let podman and containerd drive bin/ and other directories (BIN=dir CASE=), as Markdown
	@sh deploy/setup.sh test
	@sh deploy/build.sh
	@cargo run --quiet $(CARGO_FLAGS) -p netns-tests --bin runtimes -- $(BIN)

fuzz: ## Fuzz configurations, environments and results for a bounded time (FUZZ_SECONDS each)
	@sh deploy/setup.sh build
	@sh tests/fuzz.sh

clean: ## Remove everything that was built
	cargo clean
	rm -rf bin build dist
