# Everything a newcomer needs: make run, make install, make test. `make help` lists the rest.

SHELL := /bin/bash
TARGET := $(or $(CARGO_TARGET_DIR),target)
SETUP := @resources/setup

.PHONY: help run build install uninstall test soak fuzz lint guests setup clean \
    bench bench-check bench-publish bench-page bench-tools parts

help: ## show this list
	@sed -nE 's/^([a-z-]+):.*## (.*)/\1\t\2/p' Makefile | expand -t 16

# BIN=FILE, for run and install: that program, and nothing is built. Of the command line alone: an environment may have
# a BIN of its own.
export BIN =
export PREFIX = /usr/local
export DESTDIR =

run: ## boot a stock Debian kernel with a root disk, to a shell (without a terminal: a short tour)
	@resources/run

# Linked statically where there is a libc for that: finding and binding libraries is a part of each start.
STATIC := $(if $(wildcard $(shell cc -print-file-name=libc.a 2>/dev/null)),-C target-feature=+crt-static)

build: ## build the release binary; installs nothing, but says what is missing
	$(SETUP) --check build
	cargo rustc --release --bin bantam -- $(STATIC)

# Root builds nothing on somebody else's behalf, whose folder this is.
install: ## install program, manual pages and completions (PREFIX=/usr/local DESTDIR= BIN=)
	@resources/install --check
	$(if $(or $(BIN),$(SUDO_USER)),,@$(MAKE) --no-print-directory build)
	@resources/install
uninstall: ## remove what 'make install' has installed (PREFIX= and DESTDIR= as then)
	@resources/install --remove

test: guests ## every test, on this host's KVM or in the lab
	$(SETUP) build test
	cargo test --no-fail-fast

# SOAK_MINUTES=N: how long the busy machine is looked at.
export SOAK_MINUTES ?= 60
soak: ## durability, damaged images, pauses, attacks and a failing host, for much longer, and a busy machine for an hour (SOAK_MINUTES=60)
	$(SETUP) build test
	BANTAM_SOAK=1 cargo test --no-fail-fast --test durability --test disk_images --test pause --test hostile --test faults

# ONLY=block,chain fuzzes these targets alone; FUZZ_SECONDS=600 gives each ten minutes.
fuzz: ## run each fuzzer for a minute, and say what it has reached (ONLY=TARGET,... FUZZ_SECONDS=N)
	$(SETUP) build fuzz
	@ONLY=$(ONLY) FUZZ_SECONDS=$(FUZZ_SECONDS) resources/fuzz

lint: ## formatting, clippy, documentation; warnings are errors
	cargo fmt --all --check
	cargo clippy --all-targets -- -D warnings
	RUSTDOCFLAGS="-D warnings" cargo doc --no-deps --document-private-items

# ONLY=start,boot measures these rows alone; TIME=20 gives each row 20 s instead of 45;
# VMM=firecracker,... adds other VMMs.
comma := ,
BENCH = cargo bench --quiet --profile harness --bench compare -- $(if $(ONLY),--only $(ONLY)) \
    $(if $(TIME),--seconds $(TIME)) $(foreach vmm,$(subst $(comma), ,$(VMM)),--vmm $(vmm))

bench: bench-tools ## Bantam against QEMU, side by side (ONLY=ROW,... TIME=SECONDS VMM=NAME[=PATH],...)
	@$(BENCH)

bench-check: bench-tools ## a shorter run: which ratios have moved from the published ones?
	@$(BENCH) --check

bench-publish: ## put the last results into docs/
	cargo bench --quiet --profile harness --bench compare -- --publish

bench-page: ## write docs/numbers.md and its charts again from docs/numbers.json
	cargo bench --quiet --profile harness --bench compare -- --page

# Rows whose guests are bare-metal programs need no kernel.
KERNELS := $(filter-out start density,$(or $(subst $(comma), ,$(ONLY)),all))

bench-tools: ## build what 'make bench' measures, with the kernels that its rows need
	$(SETUP) build bench
	@$(MAKE) --no-print-directory build
	$(if $(KERNELS),@resources/guest/build.sh all)
	cargo rustc --release --example floor -- $(STATIC)

parts: ## micro-benchmarks of the parts on the hot path
	$(SETUP) build
	cargo bench --bench parts

guests: ## build or refresh the guests' kernels, initramfs and root disk (the first time: about ten minutes)
	resources/guest/build.sh all lab-stock
	resources/guest/kernels.sh

setup: ## install what building, running and testing need (apt, with sudo if needed)
	$(SETUP) build guest lab test

clean: ## remove all that was built, the guests too
	cargo clean
