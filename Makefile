# make demo      builds what is missing and shows a cluster that loses its coordinator, and no job
# make wordcount counts words on a cluster that loses a node, compared with sort and uniq; FOLDER=folder
# make test      builds what is missing and runs every check and test
# make bench     measures clusters of processes; OUT=FOLDER writes results.json, charts; BENCH="..."; RELEASE=1
# make bench-peers  the same work through other queues beside ours; `make setup-peers` installs them
# make simulate  simulates many clusters under faults; SEEDS=n JOBS=n NODES=n PARTITIONS=n
# make model     explores elections and takeovers in every order, within wider bounds; JOBS=n MODEL="..."
# make fuzz      feeds damaged bytes to every decoder; SECONDS=n for each target
# make chaos     real nodes in namespaces of their own, under faults; MINUTES=n SEED=n OUT=FOLDER
# make upgrade   real nodes replaced one after another under load; FROM=commit: from an earlier program
# make test-api  a node held to the document of its HTTP interface, by schemathesis; API="..."
# make test-sdk  the tests of the SDKs alone; make test-page  the page of a node in a real browser
# make test-quick  the interface, the page and what operators install, in about a minute each
# make test-ops  metrics, alerts, dashboard, service and package, tried on real nodes
# make deb       builds the Debian package; OUT=folder, PROFILE=dev for the program as tests have it
# make flood     nonsense at 10,000 frames a second, from a stranger and a member; SECONDS=n
# make cost      what admission and the checks of each frame take of the work; JOBS=n
# make audit     licences, advisories and sources of all that is built in; make sbom lists it (CycloneDX)
# make book      builds docs/ as a book, with mdbook
# make help      lists these and the long runs

# Dependencies are built once, outside the working copy, and kept between clones.
export CARGO_TARGET_DIR ?= $(HOME)/.cache/carbonmesh/target
SEEDS ?= 10000
JOBS ?= 2
# With --all-targets what programs are linked with is the same as for tests, so that nothing is built twice.
TARGETS ?=
# What is given to the model checker: scenarios, bounds in place of theirs; `--help` lists them.
MODEL ?= --wide
SECONDS ?= 60
# What is given to the benchmark: `--only latency`, `--repeat 5`, `--queued 10000000`; see `--help`.
BENCH ?=
# Where `make test-api` installs what it needs.
API_TOOLS ?= $(HOME)/.cache/carbonmesh/api
# The same for `make test-page`; AXE=file names another axe.min.js.
PAGE_TOOLS ?= $(HOME)/.cache/carbonmesh/page
# Where `make setup-peers` puts what Debian does not have.
PEERS ?= $(HOME)/.cache/carbonmesh/peers
# Where programs go that checks need and the system lacks.
TOOLS ?= $(HOME)/.cache/carbonmesh/tools
PROFILE ?= release
OUT_CHAOS := $(or $(OUT),$(CARGO_TARGET_DIR)/chaos)
OUT_UPGRADE := $(or $(OUT),$(CARGO_TARGET_DIR)/upgrade)

# The C++ part is compiled through ccache where there is one, so that it survives a `cargo clean`.
ifneq ($(shell command -v ccache),)
export CC := ccache cc
export CXX := ccache c++
endif

BIN := $(CARGO_TARGET_DIR)/debug
# RELEASE=1 measures programs as they are shipped, which takes half an hour to build the first time.
BENCH_BIN := $(CARGO_TARGET_DIR)/$(if $(RELEASE),release,debug)
# AXE is asked for when this is used: what has it may just have been installed.
PAGE = "$(PAGE_TOOLS)/bin/python3" tests/page/check.py --program $(BIN)/carbonmesh \
	$(addprefix --axe ,$(or $(AXE),$(shell ls "$(PAGE_TOOLS)/node_modules/axe-core/axe.min.js" 2>/dev/null)))

.PHONY: help setup setup-peers build release demo wordcount test test-sdk test-api test-page test-docs test-ops test-quick deb audit sbom book verify verify-peers bench bench-peers simulate model chaos upgrade fuzz doc clean flood cost

help:
	@sed -n 's/^# \(make .*\)/\1/p' Makefile
	@echo "make doc       builds the API documentation"

setup:
	@./.ci/setup

build: setup
	@./.ci/announce-build "$(CARGO_TARGET_DIR)"
	@cargo build --locked --workspace $(TARGETS)

demo: build
	@$(BIN)/demo

wordcount: build
	@$(BIN)/wordcount $(or $(FOLDER),.)

bench: $(if $(RELEASE),release,build)
	@$(BENCH_BIN)/bench $(if $(OUT),--out $(OUT)) $(BENCH)

release: setup
	@test -e "$(CARGO_TARGET_DIR)/release/rust-node" || echo "Building what is shipped: about half an hour on 2 cores, once."
	@cargo build --locked --release -p carbonmesh-examples --bin bench --bin rust-node

setup-peers:
	@./.ci/setup-peers "$(PEERS)"

# The clients of other queues are built here only.
bench-peers: $(if $(RELEASE),release,build)
	@cargo build --locked $(if $(RELEASE),--release) -p carbonmesh-peers --features clients
	@$(BENCH_BIN)/bench-peers --tools "$(PEERS)" $(if $(ROUNDS),--rounds $(ROUNDS)) $(if $(ONLY),--only $(ONLY)) \
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
	@./.ci/check-client
	@$(MAKE) --no-print-directory audit

test: verify
	@./.ci/setup-examples
	@./.ci/setup-faults
	cargo build --locked --workspace --all-targets
	cargo test --locked --workspace
	@$(MAKE) --no-print-directory test-sdk test-docs
	@$(MAKE) --no-print-directory test-quick TARGETS=--all-targets
	cargo test --locked -p carbonmesh-simulations --features mutants --test mutants --test model_mutants
	@$(MAKE) --no-print-directory upgrade FROM= TARGETS=--all-targets
	@$(MAKE) --no-print-directory chaos SEED=$(or $(SEED),1) TARGETS=--all-targets

test-sdk:
	PYTHONPATH=sdk/python python3 -m unittest discover -s sdk/python/tests
	@if command -v node >/dev/null; then node --test sdk/javascript/carbonmesh.test.mjs; \
		else echo "not tried: there is no Node.js for sdk/javascript"; fi

# A node's HTTP interface against its own document; see tests/api/README.md.
test-api: build
	@./.ci/setup-api "$(API_TOOLS)"
	python3 tests/api/check.py --program $(BIN)/carbonmesh --schemathesis "$(API_TOOLS)/bin/schemathesis" $(API)

# The page of a node in a real browser; what it needs stands in tests/page/README.md.
test-page: build
	@./.ci/setup-page "$(PAGE_TOOLS)"
	@$(PAGE) $(if $(OUT),--out $(OUT))

# The same and what operators install, in about a minute each. What cannot be
# installed is left out, and said to be. None may take for ever.
test-quick: build
	@if ./.ci/setup-api "$(API_TOOLS)"; then timeout 600 python3 tests/api/check.py --program $(BIN)/carbonmesh \
		--schemathesis "$(API_TOOLS)/bin/schemathesis" --quick; fi
	@if ./.ci/setup-page "$(PAGE_TOOLS)"; then timeout 900 $(PAGE) --quick; fi
	@timeout 300 ./.ci/setup-ops "$(TOOLS)" || true
	@PATH="$$PATH:$(TOOLS)" timeout 600 python3 tests/ops/check.py --program $(BIN)/carbonmesh --quick

# Links between the pages of docs/, and that each of them is in the book.
test-docs:
	python3 tests/docs/check.py

# What it checks, and what it needs, stands in tests/ops/README.md.
test-ops: build
	@./.ci/setup-ops "$(TOOLS)"
	PATH="$$PATH:$(TOOLS)" python3 tests/ops/check.py --program $(BIN)/carbonmesh $(if $(ONLY),--only $(ONLY))

deb: setup
	@./.ci/announce-build "$(CARGO_TARGET_DIR)"
	@cargo build --locked --profile $(PROFILE) -p carbonmesh
	@./packaging/deb/build "$(CARGO_TARGET_DIR)/$(if $(filter dev,$(PROFILE)),debug,$(PROFILE))/carbonmesh" \
		"$(or $(OUT),$(CARGO_TARGET_DIR)/deb)"

# Licences, sources and bans by deny.toml, and the advisories where they and what reads them can be had.
audit:
	@./.ci/check-licences
	@./.ci/audit "$(TOOLS)"

sbom:
	@mkdir -p "$(or $(OUT),$(CARGO_TARGET_DIR)/sbom)"
	@./.ci/sbom >"$(or $(OUT),$(CARGO_TARGET_DIR)/sbom)/carbonmesh.cdx.json"
	@echo "$(or $(OUT),$(CARGO_TARGET_DIR)/sbom)/carbonmesh.cdx.json"

book:
	@command -v mdbook >/dev/null || { echo "error: mdbook is not installed" >&2; \
		echo "hint: cargo install mdbook; the pages can be read in docs/ as they are" >&2; exit 1; }
	mdbook build docs --dest-dir "$(or $(OUT),$(CARGO_TARGET_DIR)/book)"

simulate: setup
	cargo run --locked --profile simulate -p carbonmesh-simulations -- --seeds $(SEEDS) --jobs $(JOBS) \
		$(if $(NODES),--nodes $(NODES)) $(if $(PARTITIONS),--partitions $(PARTITIONS))

model: setup
	cargo run --locked -p carbonmesh-simulations --bin carbonmesh-model -- --jobs $(JOBS) $(MODEL)

# The targets are tests as well; here they run for longer, JOBS of them at a time.
fuzz: setup
	BOLERO_RANDOM_TEST_TIME_MS=$(SECONDS)000 cargo test --locked --workspace --test fuzz -- \
		--nocapture --test-threads $(JOBS)
	BOLERO_RANDOM_TEST_TIME_MS=$(SECONDS)000 cargo test --locked --workspace --lib -- fuzz:: \
		--nocapture --test-threads $(JOBS)

flood: setup
	CARBONMESH_FLOOD_SECONDS=$(SECONDS) cargo test --locked -p carbonmesh --lib net::flood -- --nocapture

# What trust takes of the cluster's CPU time: measured alone, so that nothing else is counted.
cost: setup
	$(if $(filter command% environment%,$(origin JOBS)),CARBONMESH_COST_JOBS=$(JOBS)) \
		cargo test --locked --workspace --lib -- net::cost --nocapture --ignored

chaos: build
	@./.ci/setup-faults
	@$(BIN)/carbonmesh-chaos --out "$(OUT_CHAOS)" \
		$(if $(MINUTES),--minutes $(MINUTES)) $(if $(SEED),--seed $(SEED))

# Without FROM the same program takes the place of itself.
upgrade: build
	@from="$(BIN)/carbonmesh"; if [ -n "$(FROM)" ]; then \
		from=$$(./.ci/build-earlier "$(FROM)" "$(CARGO_TARGET_DIR)/earlier") || exit; fi; \
		$(BIN)/carbonmesh-chaos --out "$(OUT_UPGRADE)" --upgrade-from "$$from"

doc: setup
	RUSTDOCFLAGS="-D warnings" cargo doc --locked --workspace --no-deps

clean:
	cargo clean
