# `make help` lists what there is. Every target sets the machine up first; see tools/.
SHELL := /bin/bash
VENV := .venv
OUT := out/drive
PYTEST_FLAGS :=
MINUTES := 60
SIZES := 480x360 1024x512 2048x1024
BENCHMARKS := predictors dilation node consumers metrics evaluation_memory gpu

# Enters the environment; what is installed there goes before an overlay of the same name.
ENTER := source $(VENV)/ros2.bash &&
FOUND := dense_perception launch config examples scripts resource
SOURCES := setup.py setup.cfg package.xml \
    $(shell find $(FOUND) -name __pycache__ -prune -o -not -name '*.pyc' -print)

.DEFAULT_GOAL := help
.PHONY: help environment setup drive test slow gpu lint format bench weights-check evaluate soak security clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 16

environment:
	@command -v python3 >/dev/null || \
	    { echo 'set-up: python3 is needed: sudo apt install python3 python3-venv' >&2; exit 1; }
	@python3 tools/setup_environment.py $(VENV)

setup: environment $(VENV)/package.stamp ## make the environment and install the package into it

# A build folder left behind would bring back modules that were deleted.
$(VENV)/package.stamp: $(VENV)/set-up.stamp $(SOURCES)
	@rm -rf build dense_perception.egg-info
	@$(ENTER) python -m pip install --quiet --disable-pip-version-check --no-deps \
	    --no-build-isolation --force-reinstall .
	@rm -rf build dense_perception.egg-info
	@touch $@

$(VENV)/set-up.stamp: | environment ;

drive: setup ## watch the node on a bundled drive; BAG=bag or FRAMES=folder for real input, OUT=folder
	$(ENTER) python -m dense_perception.cli.demo --out '$(OUT)' \
	    $(if $(BAG),--bag '$(BAG)') $(if $(FRAMES),--frames '$(FRAMES)')

define run_pytest
	$(ENTER) { pytest -m '$(1)' $(2) $(PYTEST_FLAGS); code=$$?; \
	    python tools/clean_shared_memory.py; exit $$code; }
endef

test: setup ## run the default tests: no GPU, no network, minutes
	$(call run_pytest,not slow and not gpu,--numprocesses 2 --dist loadfile)

slow: setup ## run the long tests
	$(call run_pytest,slow and not gpu)

gpu: setup ## run the tests that need a CUDA device
	$(call run_pytest,gpu)

lint: setup ## check format, style, types and the direction of imports
	$(ENTER) ruff format --check . && ruff check . && mypy && lint-imports

format: setup ## format the code
	$(ENTER) ruff format . && ruff check --fix .

bench: setup ## measure speed, some 40 minutes; CAMVID=folder scores, too; benchmark/ holds results
	$(ENTER) cd benchmark && python -m dense_perception.cli.bench $(addprefix --size ,$(SIZES))
	$(ENTER) for name in $(BENCHMARKS); do \
	    python benchmark/$$name.py $$([ $$name != node ] || echo --seconds 8) || exit 1; done
	$(ENTER) for name in engines keyframes; do \
	    python benchmark/$$name.py $(if $(CAMVID),--camvid '$(CAMVID)') || exit 1; done
	$(if $(CAMVID),$(ENTER) python benchmark/node.py --seconds 8 --size 480x360 1024x512 --cameras 1 \
	    --set engine=auto calibration_frames='$(abspath $(CAMVID))/train')
	$(ENTER) python benchmark/goals.py

weights-check: setup ## compare the shipped weights with their records
	$(ENTER) pytest test/weights/test_published.py $(PYTEST_FLAGS)

evaluate: setup ## evaluate a bag: BAG=bag TRUTH=folder; the report is in out/evaluation
	$(ENTER) python -m dense_perception.cli.evaluate replay --bag '$(BAG)' \
	    $(if $(TRUTH),--truth '$(TRUTH)') --out out/evaluation

soak: setup ## run the launched node for MINUTES (60) with faults; table and picture in out/soak
	$(ENTER) python tools/soak.py --minutes $(MINUTES) --out out/soak

security: setup ## keys and permissions of the nodes' enclaves; SECURITY_FLAGS='--rig FILE'
	$(ENTER) python tools/make_keystore.py security/keystore $(SECURITY_FLAGS)

clean: ## remove everything that was made, the environment too
	rm -rf $(VENV) build install log out *.egg-info .mypy_cache .ruff_cache .pytest_cache \
	    .import_linter_cache
