# make demo      builds what is missing and shows a cluster that loses its coordinator, and no job
# make wordcount counts words on a cluster that loses a node, compared with sort and uniq; FOLDER=folder
# make test      builds what is missing and runs every check and test
# make bench     measures clusters of processes; OUT=FOLDER writes results.json, charts; BENCH="..."
# make bench-peers  the same work through other queues beside ours; `make setup-peers` installs them
# make simulate  simulates many clusters under faults; SEEDS=n JOBS=n NODES=n
# make model     explores elections and takeovers in every order, within wider bounds; JOBS=n MODEL="..."
# make fuzz      feeds damaged bytes to every decoder; SECONDS=n for each target
# make chaos     real nodes in namespaces of their own, under faults; MINUTES=n SEED=n OUT=FOLDER
# make test-sdk  the tests of the SDKs alone; make test-page  the page of a node in a real browser
# make help      lists these and the long runs

# Dependencies are built once, outside the working copy, and kept between clones.
export CARGO_TARGET_DIR ?= $(HOME)/.cache/carbonmesh/target
SEEDS ?= 10000
JOBS ?= 2
# What is given to the model checker: scenarios, bounds in place of theirs; `--help` lists them.
MODEL ?= --wide
SECONDS ?= 60
# What is given to the benchmark: `--only latency`, `--repeat 5`, `--queued 10000000`; see `--help`.
BENCH ?=
# Where `make setup-peers` puts what Debian does not have.
PEERS ?= $(HOME)/.cache/carbonmesh/peers
OUT_CHAOS := $(or $(OUT),$(CARGO_TARGET_DIR)/chaos)

# The C++ part is compiled through ccache where there is one, so that it survives a `cargo clean`.
ifneq ($(shell command -v ccache),)
export CC := ccache cc
export CXX := ccache c++
endif

BIN := $(CARGO_TARGET_DIR)/debug

.PHONY: help setup setup-peers build demo wordcount test test-sdk test-page verify verify-peers bench bench-peers simulate model chaos fuzz doc clean

help:
	@sed -n 's/^# \(make .*\)/\1/p' Makefile
	@echo "make doc       builds the API documentation"

setup:
	@./.ci/setup

build: setup
	@./.ci/announce-build "$(CARGO_TARGET_DIR)"
	@cargo build --locked --workspace

demo: build
	@$(BIN)/demo

wordcount: build
	@$(BIN)/wordcount $(or $(FOLDER),.)

bench: build
	@$(BIN)/bench $(if $(OUT),--out $(OUT)) $(BENCH)

setup-peers:
	@./.ci/setup-peers "$(PEERS)"

# The clients of other queues are built here only.
bench-peers: build
	@cargo build --locked -p carbonmesh-peers --features clients
	@$(BIN)/bench-peers --tools "$(PEERS)" $(if $(ROUNDS),--rounds $(ROUNDS)) $(if $(ONLY),--only $(ONLY)) \
		$(if $(OUT),--out $(OUT))

verify-peers: setup
	cargo clippy --locked -p carbonmesh-peers --features clients --all-targets -- -D warnings

# What is cheap to know comes first.
verify: setup
	cargo fmt --all -- --check
	@./.ci/announce-build "$(CARGO_TARGET_DIR)"
	cargo clippy --locked --workspace --all-targets -- -D warnings
	cargo clippy --locked -p carbonmesh-simulations --features mutants --all-targets -- -D warnings
	@./.ci/check-core

test: verify
	cargo build --locked --workspace --all-targets
	cargo test --locked --workspace
	@$(MAKE) --no-print-directory test-sdk
	cargo test --locked -p carbonmesh-simulations --features mutants --test mutants --test model_mutants
	@$(MAKE) --no-print-directory chaos SEED=$(or $(SEED),1)

test-sdk:
	PYTHONPATH=sdk/python python3 -m unittest discover -s sdk/python/tests
	@if command -v node >/dev/null; then node --test sdk/javascript/carbonmesh.test.mjs; \
		else echo "not tried: there is no Node.js for sdk/javascript"; fi

# The page of a node in a real browser; what it needs stands in tests/page/README.md.
test-page: build
	python3 tests/page/check.py --program $(BIN)/carbonmesh $(if $(OUT),--out $(OUT)) $(if $(AXE),--axe $(AXE))

simulate: setup
	cargo run --locked --profile simulate -p carbonmesh-simulations -- --seeds $(SEEDS) --jobs $(JOBS) \
		$(if $(NODES),--nodes $(NODES))

model: setup
	cargo run --locked -p carbonmesh-simulations --bin carbonmesh-model -- --jobs $(JOBS) $(MODEL)

# The targets are tests as well; here they run for longer, JOBS of them at a time.
fuzz: setup
	BOLERO_RANDOM_TEST_TIME_MS=$(SECONDS)000 cargo test --locked --workspace --test fuzz -- \
		--nocapture --test-threads $(JOBS)
	BOLERO_RANDOM_TEST_TIME_MS=$(SECONDS)000 cargo test --locked --workspace --lib -- fuzz:: \
		--nocapture --test-threads $(JOBS)

chaos: build
	@$(BIN)/carbonmesh-chaos --out "$(OUT_CHAOS)" \
		$(if $(MINUTES),--minutes $(MINUTES)) $(if $(SEED),--seed $(SEED))

doc: setup
	RUSTDOCFLAGS="-D warnings" cargo doc --locked --workspace --no-deps

clean:
	cargo clean
