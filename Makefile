# What a contributor and CI run. The beds (plugins, guest, control plane, node) are installed by the targets that need
# them, into target/beds; a second run takes no time.
CARGO ?= cargo
BEDS := $(CURDIR)/target/beds
MINUTES ?= 60
SEED ?= $(shell date +%s)
SECONDS ?= 60
export META_CNI_BED_CACHE := $(BEDS)
export META_CNI_REFERENCE_PLUGINS := $(BEDS)/plugins/reference

.PHONY: all fmt lint test soak fuzz demo bench build release image beds test-host test-guest

all: build

build:
	$(CARGO) build --locked

release:
	$(CARGO) build --locked --release

# A container image from scratch, for deploy/base/daemonset.yaml; no container engine is needed.
IMAGE ?= meta-cni:latest
image: release
	deploy/image target/$$(rustc -vV | sed -n 's/^host: //p')/release/meta-cni target/image/meta-cni.tar $(IMAGE)

fmt:
	$(CARGO) fmt --all
	$(CARGO) fmt --manifest-path fuzz/Cargo.toml

lint:
	$(CARGO) fmt --all --check
	$(CARGO) tree --locked --quiet --manifest-path fuzz/Cargo.toml >/dev/null
	$(CARGO) fmt --manifest-path fuzz/Cargo.toml --check
	$(CARGO) clippy --locked --workspace --all-targets -- -D warnings
	$(CARGO) clippy --locked -p meta-cni --test guest --test full-node --test churn -- -D warnings
	$(CARGO) clippy --locked -p sriov --test igb -- -D warnings
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --locked --workspace --no-deps --quiet

beds:
	mkdir -p $(BEDS)
	tests/netns/install
	tests/releases/install
	tests/guest/install
	tests/control-plane/install
	tests/node/install

# Everything that is promised, in under 20 minutes with the beds installed.
test: beds lint
	tests/all

# The same in parts, one after the other.
test-host:
	$(CARGO) test --locked --workspace
	tests/size

test-guest:
	tests/guest/suite
	tests/guest/power-cut 2
	tests/guest/full-node pods_get_vfs

soak: beds
	tests/soak --minutes $(MINUTES) --seed $(SEED)

# Each target for so many seconds; the corpus itself is run by `make test`.
fuzz:
	fuzz/run --seconds $(SECONDS)

demo:
	tests/guest/run-demo

bench: beds release
	tests/bench/run
