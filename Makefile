# `make` prints what there is. Every target does the set-up that it needs, in .venv.

VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check
# Of the machine that `make selftest-bundle` is for.
PYTHON_VERSION ?= 3.12
# TensorFlow's start-up lines say nothing about multitower.
export TF_CPP_MIN_LOG_LEVEL ?= 2

# The wheel, unpacked. Tests of it must not find the checkout instead. Where scikit-learn and matplotlib are installed,
# Keras imports both with TensorFlow, which takes a third of the time; tests/hidden hides them from tests that need neither.
INSTALLED := build/installed
ON_WHEEL := PYTHONSAFEPATH=1 PYTHONPATH=$(CURDIR)/$(INSTALLED):$(CURDIR)/tests/hidden BUILT_WHEELS=$(CURDIR)/build/wheel
CHAOS := $(ON_WHEEL) $(BIN)/python -m pytest -m chaos tests/chaos tests/integration
SOURCES := $(shell find multitower supervisor worker -name '*.py' -o -name '*.c') setup.py pyproject.toml

.DEFAULT_GOAL := menu
.PHONY: menu demo serve test test-unit test-chaos test-java sanitize wheel wheels selftest-bundle lint format bench docs clean

menu: ## Print this menu
	@echo "multitower: one TensorFlow model on every GPU of a machine"
	@echo
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1	\2/p' $(MAKEFILE_LIST) | expand -t 24

demo: $(VENV)/.demo ## Train, serve on two CPU workers, kill one under load, count what was lost
	@$(BIN)/multitower demo --folder demo

serve: $(VENV)/.demo ## Serve the demo's digits model until Ctrl-C, for a client of your own
	@$(BIN)/multitower demo --folder demo --serve

test: $(VENV)/.dev wheel ## Run all tests: rules on the checkout, everything else on the wheel that users install
	$(BIN)/python -m pytest tests/unit --numprocesses 3
	@# Several files at a time, since most wait; those that take longest come first. Tests that kill under load
	@# run two at a time: they use a core each. None rests on a speed that a neighbour could spoil.
	$(ON_WHEEL) $(BIN)/python -m pytest -m 'not chaos' tests/packaging tests/tensorflow tests/integration \
	    --numprocesses 4 --dist loadfile --no-loadscope-reorder
	$(CHAOS) --numprocesses 2 --dist worksteal

test-unit: $(VENV)/.dev ## Run the tests that start no process: a minute
	$(BIN)/python -m pytest tests/unit --numprocesses 3

test-chaos: $(VENV)/.dev wheel ## Run the tests that kill real processes under load, one at a time, and print figures
	$(CHAOS)

sanitize: $(VENV)/.dev ## Test and fuzz the C module under AddressSanitizer and UndefinedBehaviorSanitizer; needs gcc
	scripts/sanitize $(abspath $(BIN)/python)

wheels: $(VENV)/.dev ## Build wheels for each supported Python that is here, and an sdist, into dist/; check all of them
	$(BIN)/python scripts/wheels.py dist

wheel: $(INSTALLED)/.built ## Build the wheel, compiled where there is a C compiler, and unpack it where tests use it

selftest-bundle: $(VENV)/.dev ## Collect what `multitower selftest` needs on a machine without a network, under 60 MB
	$(BIN)/python scripts/selftest_bundle.py build/selftest-bundle --python-version $(PYTHON_VERSION)

# The property also forbids Maven to skip the tests with daemons.
test-java: $(VENV)/.demo ## Run the Java client's tests, with real daemons; needs a JDK and Maven
	cd clients/java && mvn --batch-mode --no-transfer-progress -Dmultitower.python='$(abspath $(BIN)/python)' verify

lint: $(VENV)/.dev ## Check style, types and who imports whom
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/mypy --strict tests/typing
	$(BIN)/lint-imports

format: $(VENV)/.dev ## Bring the code into shape
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(VENV)/.dev wheel ## Measure: the router beside libzmq's C proxy, its cost, simulated devices, a restart
	for program in router cost devices budget restart tensorflow_calls; do \
	    PYTHONPATH=$(CURDIR)/$(INSTALLED) $(BIN)/python benchmarks/$$program.py || exit; done

docs: $(VENV)/.docs ## Write the generated parts of docs/, and build the documentation as a site in build/site
	$(BIN)/python scripts/docs.py
	$(BIN)/python scripts/build_site.py

clean: ## Remove the virtual environment and what tools leave behind
	rm -rf $(VENV) .cache .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis build dist *.egg-info clients/java/target
	find multitower supervisor worker -name '*.so' -delete

$(INSTALLED)/.built: $(SOURCES) | $(VENV)/.dev
	@echo "building the wheel: half a minute where it is compiled"
	@rm -rf build/wheel $(INSTALLED) && mkdir -p build
	@$(BIN)/python -m build --wheel --outdir build/wheel . >build/wheel.log 2>&1 || { cat build/wheel.log; exit 1; }
	@$(PIP) --no-deps --target $(INSTALLED) build/wheel/*.whl
	@touch $@

$(VENV)/.demo: pyproject.toml
	@scripts/venv $(VENV)
	@echo "installing multitower and TensorFlow into $(VENV): some minutes the first time"
	@$(PIP) --editable '.[demo]'
	@touch $@

$(VENV)/.docs: pyproject.toml
	@scripts/venv $(VENV)
	@echo "installing multitower and Zensical into $(VENV)"
	@$(PIP) --editable '.[docs]'
	@touch $@

$(VENV)/.dev: pyproject.toml
	@scripts/venv $(VENV)
	@echo "installing multitower, TensorFlow and the tools into $(VENV): some minutes the first time"
	@$(PIP) --editable '.[dev]'
	@# Some tests compile stand-ins for GPU libraries; where there is no C compiler, one comes as a wheel.
	@command -v cc >/dev/null || $(PIP) ziglang
	@touch $@ $(VENV)/.demo
