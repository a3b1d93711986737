# Everything a newcomer needs: make run, make test. `make help` lists the rest.

SHELL := /bin/bash
TARGET := $(or $(CARGO_TARGET_DIR),target)
LAB := resources/lab/lab

.PHONY: help build run shell test lint docs guests setup clean

help: ## show this list
	@grep -hE '^[a-z]+:.*##' Makefile | sed -E 's/:.*## /\t/' | expand -t 10

build: setup ## build the release binary
	cargo build --release

run: build ## boot a stock Debian kernel with a root disk, to a shell (without a terminal: a short tour)
	@resources/run

test: setup guests ## every test, on this host's KVM or in the lab
	cargo test --no-fail-fast

lint: ## formatting, clippy, documentation; warnings are errors
	cargo fmt --all --check
	cargo clippy --all-targets -- -D warnings
	RUSTDOCFLAGS="-D warnings" cargo doc --no-deps --document-private-items

guests: ## build or refresh the guests' kernel, initramfs and root disk
	resources/guest/build.sh all

setup: ## install what is missing (apt, with sudo if needed)
	@resources/setup

clean: ## remove what was built
	cargo clean
