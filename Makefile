# `make` prints what there is. Every target does the set-up that it needs, in .venv.

VENV := .venv
BIN := $(VENV)/bin
# .ci/run sets these two to uv, which finds the same versions in a quarter of pip's CPU time.
INSTALLER ?= $(BIN)/python -m pip install --quiet --disable-pip-version-check
BUILD_OPTIONS ?=
# Of the machine that `make selftest-bundle` is for.
PYTHON_VERSION ?= 3.12
# Where this is set (images of containers do), each process would compile TensorFlow's modules anew: 12 s of CPU time for
# an import, instead of 4.
unexport PYTHONDONTWRITEBYTECODE
# TensorFlow's start-up lines say nothing about multitower.
export TF_CPP_MIN_LOG_LEVEL ?= 2

# The wheel, unpacked. Tests of it must not find the checkout instead. Where scikit-learn, SciPy, matplotlib and Pillow are
# installed, Keras imports them with TensorFlow, which takes a third of the time; tests/hidden hides them from tests that
# need none of them.
INSTALLED := build/installed
ON_WHEEL := PYTHONSAFEPATH=1 PYTHONPATH=$(CURDIR)/$(INSTALLED):$(CURDIR)/tests/hidden BUILT_WHEELS=$(CURDIR)/build/wheel
# What is copied before a wheel is built, so that an editable installation of the checkout can be made meanwhile.
WHEEL_SOURCE := multitower supervisor worker setup.py pyproject.toml README.md LICENSE MANIFEST.in
# How many files of tests that start processes run at a time: most wait.
TEST_PROCESSES ?= 4
# More options for Maven.
JAVA_OPTIONS ?=
CHAOS := $(ON_WHEEL) $(BIN)/python -m pytest -m chaos tests/chaos tests/integration
GATEWAY_SOURCES := $(shell find gateway -name target -prune -o -type f -print)
SOURCES := $(shell find multitower supervisor worker -name '*.py' -o -name '*.c') setup.py pyproject.toml

.DEFAULT_GOAL := menu
.PHONY: menu demo serve test test-unit test-processes test-chaos test-java sanitize wheel wheels selftest-bundle lint format sbom gateway gateway-check gateway-check-build gateway-deny gateway-fuzz gateway-protos bench docs clean

menu: ## Print this menu
	@echo "multitower: one TensorFlow model on every GPU of a machine"
	@echo
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1	\2/p' $(MAKEFILE_LIST) | expand -t 24

demo: $(VENV)/.demo ## Train, serve on two CPU workers, kill one under load, count what was lost
	@$(BIN)/multitower demo --folder demo

serve: $(VENV)/.demo ## Serve the demo's digits model until Ctrl-C, for a client of your own
	@$(BIN)/multitower demo --folder demo --serve

test: test-unit test-processes ## Run all tests: rules on the checkout, everything else on the wheel that users install
	@# Tests that kill under load run three at a time on two cores: each waits for much of its time. None rests on a
	@# speed that a neighbour could spoil.
	$(CHAOS) --numprocesses 3 --dist worksteal

test-unit: $(VENV)/.dev ## Run the tests that start no process: a minute
	$(BIN)/python -m pytest tests/unit --numprocesses 2

test-processes: $(VENV)/.dev wheel gateway build/clients/.made ## Run the tests that start processes and kill none under load, on the wheel
	@# In the order of tests/conftest.py.
	$(ON_WHEEL) $(BIN)/python -m pytest -m 'not chaos' tests/packaging tests/tensorflow tests/gateway tests/integration \
	    --numprocesses $(TEST_PROCESSES) --dist loadfile --no-loadscope-reorder

test-chaos: $(VENV)/.dev wheel gateway build/clients/.made ## Run the tests that kill real processes under load, one at a time, and print figures
	$(CHAOS) $(CHAOS_OPTIONS)

sanitize: $(VENV)/.dev ## Test and fuzz the C module under AddressSanitizer and UndefinedBehaviorSanitizer; needs gcc
	scripts/sanitize $(abspath $(BIN)/python)

wheels: $(VENV)/.dev ## Build wheels for each supported Python that is here, and an sdist, into dist/; check all of them
	$(BIN)/python scripts/wheels.py dist

wheel: $(INSTALLED)/.built ## Build the wheel, compiled where there is a C compiler, and unpack it where tests use it

selftest-bundle: $(VENV)/.dev ## Collect what `multitower selftest` needs on a machine without a network, under 60 MB
	$(BIN)/python scripts/selftest_bundle.py build/selftest-bundle --python-version $(PYTHON_VERSION)

# The property also forbids Maven to skip the tests with daemons.
test-java: $(VENV)/.demo ## Run the Java client's tests, with real daemons; needs a JDK and Maven
	cd clients/java && mvn --batch-mode --no-transfer-progress -Dmultitower.python='$(abspath $(BIN)/python)' \
	    $(JAVA_OPTIONS) verify

lint: $(VENV)/.dev ## Check style, types and who imports whom
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/mypy --strict tests/typing
	$(BIN)/lint-imports

format: $(VENV)/.dev ## Bring the code into shape
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

gateway: $(VENV)/.gateway ## Build the gateway for HTTP and gRPC into .venv; where there is no cargo, print that and go on

# `cargo clippy` would check all crates again that are compiled for the tests. As the compiler of the gateway alone, and
# with its options in the variable that `cargo clippy` sets, clippy's program checks what it compiles.
CLIPPY := RUSTC_WORKSPACE_WRAPPER=clippy-driver CLIPPY_ARGS='--deny__CLIPPY_HACKERY__warnings__CLIPPY_HACKERY__'

gateway-check: gateway-check-build ## Check the gateway's code and run its own tests; needs cargo with clippy and rustfmt
	cd gateway && cargo fmt --check && echo "cargo fmt: no difference"
	cd gateway && $(CLIPPY) cargo test --locked --quiet

gateway-check-build:
	cd gateway && $(CLIPPY) cargo build --locked --quiet --bins --tests

gateway-deny: ## Check licences, sources and known faults of the gateway's crates; needs cargo-deny
	cd gateway && cargo deny --locked check

gateway-fuzz: ## Fuzz the gateway's JSON for a minute; needs cargo-fuzz and nightly Rust
	cd gateway && cargo +nightly fuzz run json -- -max_total_time=60

gateway-protos: ## Generate gateway/src/proto from gateway/proto; needs cargo, no protoc
	cd gateway/codegen && cargo run --quiet --locked

bench: $(VENV)/.dev wheel ## Measure: the router beside libzmq's C proxy, its cost, simulated devices, a restart
	for program in router cost devices budget restart tensorflow_calls; do \
	    PYTHONPATH=$(CURDIR)/$(INSTALLED) $(BIN)/python benchmarks/$$program.py || exit; done

sbom: $(VENV)/.dev ## Write what a daemon consists of, in CycloneDX's format, into build/sbom; the gateway's part needs cargo
	@$(BIN)/python scripts/sbom.py build/sbom

docs: $(VENV)/.docs ## Write the generated parts of docs/, and build the documentation as a site in build/site
	$(BIN)/python scripts/docs.py
	$(BIN)/python scripts/build_site.py

clean: ## Remove the virtual environment and what tools leave behind
	rm -rf $(VENV) .cache .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis build dist *.egg-info clients/java/target gateway/target
	find multitower supervisor worker -name '*.so' -delete

$(INSTALLED)/.built: $(SOURCES) | $(VENV)/.build
	@echo "building the wheel: half a minute where it is compiled"
	@rm -rf build/wheel build/wheel-source $(INSTALLED) && mkdir -p build/wheel-source
	@cp -RP $(WHEEL_SOURCE) build/wheel-source
	@$(BIN)/python -m build --wheel $(BUILD_OPTIONS) --outdir build/wheel build/wheel-source >build/wheel.log 2>&1 || \
	    { cat build/wheel.log; exit 1; }
	@$(INSTALLER) --no-deps --compile --target $(INSTALLED) build/wheel/*.whl
	@touch $@

build/gateway/.built: $(GATEWAY_SOURCES) scripts/gateway_wheel | $(VENV)/.build
	@scripts/gateway_wheel $(abspath $(BIN))/python build/gateway

$(VENV)/.gateway: build/gateway/.built
	@[ ! -e build/gateway/.built ] || { $(INSTALLER) --no-deps --force-reinstall build/gateway/*.whl && touch $@; }

# Clients of other servers, for the tests of the gateway; where there is no gateway, none are needed.
build/clients/.made: tests/gateway/clients/requirements.txt scripts/foreign_clients | $(VENV)/.dev build/gateway/.built
	@[ ! -e build/gateway/.built ] || { echo "installing clients of other servers into build/clients: a minute" && \
	    mkdir -p build && scripts/foreign_clients build/clients && touch $@; }

$(VENV)/.demo: pyproject.toml
	@scripts/venv $(VENV)
	@echo "installing multitower and TensorFlow into $(VENV): some minutes the first time"
	@$(INSTALLER) --editable '.[demo]'
	@touch $@

$(VENV)/.docs: pyproject.toml
	@scripts/venv $(VENV)
	@echo "installing multitower and Zensical into $(VENV)"
	@$(INSTALLER) --editable '.[docs]'
	@touch $@

# What building a wheel needs, so that this can begin while TensorFlow is being installed.
$(VENV)/.build:
	@scripts/venv $(VENV)
	@$(INSTALLER) build
	@touch $@

# Everything in one installation, for .ci/run. pip would compile all modules of TensorFlow, of which tests import a
# quarter; the import compiles those once, before tests do so in many processes at a time.
$(VENV)/.all: pyproject.toml | $(VENV)/.build
	@$(INSTALLER) --no-compile --editable '.[dev,docs]'
	@mkdir -p build
	@$(BIN)/python -W ignore -c 'import tensorflow' 2>build/import.log || { cat build/import.log; exit 1; }
	@command -v cc >/dev/null || $(INSTALLER) ziglang
	@touch $(VENV)/.dev $(VENV)/.demo $(VENV)/.docs $@

$(VENV)/.dev: pyproject.toml
	@scripts/venv $(VENV)
	@echo "installing multitower, TensorFlow and the tools into $(VENV): some minutes the first time"
	@$(INSTALLER) --editable '.[dev]'
	@# Some tests compile stand-ins for GPU libraries; where there is no C compiler, one comes as a wheel.
	@command -v cc >/dev/null || $(INSTALLER) ziglang
	@touch $@ $(VENV)/.demo $(VENV)/.build
