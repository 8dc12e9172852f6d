# `make` prints what there is. Every target does the set-up that it needs, in .venv.

VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check
# TensorFlow's start-up lines say nothing about multitower.
export TF_CPP_MIN_LOG_LEVEL ?= 2

.DEFAULT_GOAL := menu
.PHONY: menu demo serve test test-unit test-chaos test-java lint format bench docs clean

menu: ## Print this menu
	@echo "multitower: one TensorFlow model on every GPU of a machine"
	@echo
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1	\2/p' $(MAKEFILE_LIST) | expand -t 20

demo: $(VENV)/.demo ## Train, serve on two CPU workers, kill one under load, count what was lost
	@$(BIN)/multitower demo --folder demo

serve: $(VENV)/.demo ## Serve the demo's digits model until Ctrl-C, for a client of your own
	@$(BIN)/multitower demo --folder demo --serve

test: $(VENV)/.dev ## Run all tests: several files at a time, as most wait, then those that kill under load by themselves
	@# In the order of the folders: the brief unit tests come last, and fill up what the long ones leave.
	$(BIN)/python -m pytest -m 'not chaos' --numprocesses 3 --dist loadfile --no-loadscope-reorder
	$(BIN)/python -m pytest -m chaos

test-unit: $(VENV)/.dev ## Run the tests that start no process: seconds
	$(BIN)/python -m pytest tests/unit

test-chaos: $(VENV)/.dev ## Run the tests that kill real processes under load
	$(BIN)/python -m pytest -m chaos

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

bench: $(VENV)/.dev ## Measure: the router beside libzmq's C proxy, its cost, simulated devices, a restart
	@# What users install is compiled, unlike what is installed here to be edited.
	$(PIP) --no-deps --upgrade --target build/installed .
	PYTHONPATH=$(CURDIR)/build/installed $(BIN)/python benchmarks/router.py
	PYTHONPATH=$(CURDIR)/build/installed $(BIN)/python benchmarks/cost.py
	PYTHONPATH=$(CURDIR)/build/installed $(BIN)/python benchmarks/devices.py
	PYTHONPATH=$(CURDIR)/build/installed $(BIN)/python benchmarks/budget.py
	PYTHONPATH=$(CURDIR)/build/installed $(BIN)/python benchmarks/restart.py
	PYTHONPATH=$(CURDIR)/build/installed $(BIN)/python benchmarks/tensorflow_calls.py

docs: $(VENV)/.dev ## Write again the parts of docs/ that are made from the code
	$(BIN)/python scripts/docs.py

clean: ## Remove the virtual environment and what tools leave behind
	rm -rf $(VENV) .cache .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis build dist *.egg-info clients/java/target multitower/*.so supervisor/*.so worker/*.so

$(VENV)/.demo: pyproject.toml
	@scripts/venv $(VENV)
	@echo "installing multitower and TensorFlow into $(VENV): some minutes the first time"
	@$(PIP) --editable '.[demo]'
	@touch $@

$(VENV)/.dev: pyproject.toml
	@scripts/venv $(VENV)
	@echo "installing multitower, TensorFlow and the tools into $(VENV): some minutes the first time"
	@$(PIP) --editable '.[dev]'
	@# Some tests compile stand-ins for GPU libraries; where there is no C compiler, one comes as a wheel.
	@command -v cc >/dev/null || $(PIP) ziglang
	@touch $@ $(VENV)/.demo
