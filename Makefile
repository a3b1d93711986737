# Everything a newcomer needs: make run, make test. `make help` lists the rest.

SHELL := /bin/bash
TARGET := $(or $(CARGO_TARGET_DIR),target)
LAB := resources/lab/lab

.PHONY: help build run test soak lint guests setup clean bench bench-check bench-publish bench-page bench-tools parts

help: ## show this list
	@grep -hE '^[a-z]+:.*##' Makefile | sed -E 's/:.*## /\t/' | expand -t 10

# Linked statically where there is a libc for that: finding and binding libraries is a part of each start.
STATIC := $(if $(wildcard $(shell cc -print-file-name=libc.a 2>/dev/null)),-C target-feature=+crt-static)

build: setup ## build the release binary
	cargo rustc --release --bin bantam -- $(STATIC)

run: build ## boot a stock Debian kernel with a root disk, to a shell (without a terminal: a short tour)
	@resources/run

test: setup guests ## every test, on this host's KVM or in the lab
	cargo test --no-fail-fast

soak: setup ## the tests of durability and of damaged images, for longer: 200 kills of each kind of disk, 2000 damages
	BANTAM_SOAK=1 cargo test --no-fail-fast --test durability --test disk_images

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

bench-tools: build guests
	@resources/setup bench
	cargo rustc --release --example floor -- $(STATIC)

parts: setup ## micro-benchmarks of the parts on the hot path
	cargo bench --bench parts

guests: ## build or refresh the guests' kernel, initramfs and root disk
	resources/guest/build.sh all

setup: ## install what is missing (apt, with sudo if needed)
	@resources/setup

clean: ## remove what was built
	cargo clean
