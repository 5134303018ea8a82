# Everything runs in a virtual environment that is made on first use; another one: make … VENV=/path
VENV ?= .venv
PYTHON ?= python3
ARGS ?=
EXP ?= experiments/demo2d/unet2d.yaml
SET ?=

# Libraries that phone home are told not to.
export NO_ALBUMENTATIONS_UPDATE = 1
export MLFLOW_DISABLE_TELEMETRY = true
export DO_NOT_TRACK = true

.DEFAULT_GOAL := help
.PHONY: help setup setup-dev demo cv submit study dashboard ui reference test test-slow test-faults coverage mutants lint lock clean

help: ## list these targets
	@awk -F ': .*## ' '/^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' Makefile
	@echo 'For example: make cv EXP=experiments/demo2d/unet2d.yaml SET="training.epochs=4"'

setup: $(VENV)/.project ## make the virtual environment (the other targets do so by themselves)
	@:

setup-dev: setup $(VENV)/.requirements-dev ## add the packages that tests and lint need
	@:

demo: setup ## make the two demo competitions under data/
	@$(VENV)/bin/maskfold demo 2d
	@$(VENV)/bin/maskfold demo 3d

cv: ## cross-validate the 2D demo, or make cv EXP=FILE.yaml SET="key=value …"
	@$(MAKE) --no-print-directory setup
	@set -f; $(VENV)/bin/maskfold cv $(EXP) $(SET)

submit: ## predict the test cases of an experiment's latest run and write its CSV: make submit EXP=FILE.yaml
	@$(MAKE) --no-print-directory setup
	@set -f; $(VENV)/bin/maskfold submit $(EXP) $(SET)

study: ## search the experiment's study.space: make study EXP=FILE.yaml TRIALS=30; run it again and it goes on
	@$(MAKE) --no-print-directory setup
	@set -f; $(VENV)/bin/maskfold study $(EXP) $(if $(TRIALS),--trials $(TRIALS)) $(SET)

dashboard: setup ## open optuna-dashboard on mlruns/optuna.db
	@$(VENV)/bin/python -c 'import optuna_dashboard' 2> /dev/null || $(VENV)/bin/python -m pip install -qq --disable-pip-version-check 'optuna-dashboard>=0.18'
	@$(VENV)/bin/optuna-dashboard sqlite:///mlruns/optuna.db --host 127.0.0.1

ui: setup ## open MLflow's pages on the runs of this folder
	@$(VENV)/bin/maskfold ui

REFERENCES = hippocampus_monai spine spleen a02025 hipmri
# Real data elsewhere: ROOT=/path
ROOT ?= data/$(if $(filter hippocampus_monai,$(NAME)),hippocampus,$(NAME))

reference: ## a reference system from its data to its pictures: make reference NAME=spine (see docs/references.md)
	@for one in $(REFERENCES); do [ "$$one" = "$(NAME)" ] && exit 0; done; \
	echo 'make reference needs NAME=, one of: $(REFERENCES)' >&2; exit 2
	@$(MAKE) --no-print-directory setup
	@$(MAKE) --no-print-directory reference-$(NAME)

reference-hippocampus_monai:
	$(VENV)/bin/maskfold explore experiments/hippocampus_monai/competition.yaml root=$(ROOT)
	$(VENV)/bin/maskfold cv experiments/hippocampus_monai/unet3d.yaml competition.root=$(ROOT) $(SET)
	$(VENV)/bin/maskfold cv experiments/hippocampus_monai/next.yaml competition.root=$(ROOT) $(SET)
	$(VENV)/bin/maskfold submit experiments/hippocampus_monai/next.yaml competition.root=$(ROOT) $(SET)
	$(VENV)/bin/maskfold report experiments/hippocampus_monai/next.yaml competition.root=$(ROOT) $(SET)

reference-spine:
	$(VENV)/bin/maskfold demo spine --layout spine -o $(ROOT)
	$(VENV)/bin/maskfold explore experiments/spine/competition.yaml root=$(ROOT)
	$(VENV)/bin/maskfold cv experiments/spine/unet3d.yaml competition.root=$(ROOT) $(SET)
	$(VENV)/bin/maskfold cv experiments/spine/levels.yaml competition.root=$(ROOT) $(SET)
	$(VENV)/bin/maskfold predict experiments/spine/levels.yaml competition.root=$(ROOT) $(SET) --images $(ROOT)/test_images -o submissions/spine
	$(VENV)/bin/maskfold report experiments/spine/levels.yaml competition.root=$(ROOT) $(SET)

reference-spleen:
	$(VENV)/bin/maskfold demo spleen --layout spleen -o $(ROOT)
	$(VENV)/bin/maskfold dicom $(ROOT)/dicom/train -o $(ROOT) --layout imagesTr --labels 'spleen labels'
	$(VENV)/bin/maskfold dicom $(ROOT)/dicom/test -o $(ROOT) --layout imagesTs
	$(VENV)/bin/maskfold explore experiments/spleen/competition.yaml root=$(ROOT)
	$(VENV)/bin/maskfold cv experiments/spleen/unet3d.yaml competition.root=$(ROOT) $(SET)
	$(VENV)/bin/maskfold predict experiments/spleen/unet3d.yaml competition.root=$(ROOT) $(SET) --images $(ROOT)/imagesTs -o submissions/spleen
	$(VENV)/bin/maskfold report experiments/spleen/unet3d.yaml competition.root=$(ROOT) $(SET)

reference-a02025:
	$(VENV)/bin/maskfold demo a02025 --layout a02025 -o $(ROOT)
	$(VENV)/bin/maskfold explore experiments/a02025/competition.yaml root=$(ROOT)
	$(VENV)/bin/maskfold cv experiments/a02025/unet2d.yaml competition.root=$(ROOT) $(SET)
	$(VENV)/bin/maskfold cv experiments/a02025/next.yaml competition.root=$(ROOT) $(SET)
	$(VENV)/bin/maskfold submit experiments/a02025/next.yaml competition.root=$(ROOT) $(SET) -o submissions/a02025/next.csv
	$(VENV)/bin/maskfold score submissions/a02025/next.csv --competition experiments/a02025/competition.yaml root=$(ROOT) --solution $(ROOT)/solution.csv
	$(VENV)/bin/maskfold report experiments/a02025/next.yaml competition.root=$(ROOT) $(SET)

reference-hipmri:
	$(VENV)/bin/maskfold demo hipmri --layout hipmri -o $(ROOT)
	$(VENV)/bin/maskfold explore experiments/hipmri/competition.yaml root=$(ROOT)
	$(VENV)/bin/maskfold cv experiments/hipmri/unet3d.yaml competition.root=$(ROOT) $(SET)
	$(VENV)/bin/maskfold report experiments/hipmri/unet3d.yaml competition.root=$(ROOT) $(SET)

test: setup-dev ## run the tests, one process for each core; ARGS="tests/config -x" selects
	@OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest -q -n logical --dist loadgroup $(ARGS)

test-slow: setup-dev ## run the tests that train and serve for longer
	@$(VENV)/bin/python -m pytest -q -m slow $(ARGS)

test-faults: setup-dev ## run the tests that kill processes, fill disks and break files (docs/reliability.md)
	@$(VENV)/bin/python -m pytest -q -m faults tests/faults $(ARGS)

coverage: setup-dev ## measure which lines the tests run, those that kill processes included
	@$(VENV)/bin/python -m pytest -q -m "not slow" --cov=competition --cov-report=term:skip-covered $(ARGS)

mutants: setup-dev ## change the code in a copy, one place after the other, and see whether its tests notice
	@$(VENV)/bin/python -c 'import mutmut' 2> /dev/null || $(VENV)/bin/python -m pip install -qq --disable-pip-version-check 'mutmut>=3.8'
	@rm -rf build/mutants && mkdir -p build/mutants && git archive HEAD | tar x -C build/mutants
	@cd build/mutants && $(abspath $(VENV))/bin/mutmut run --max-children 1 && $(abspath $(VENV))/bin/mutmut results

lint: setup-dev ## check format, style, types and the import order of the packages
	@$(VENV)/bin/ruff format --check --quiet . || { echo "ruff format would change files: run ruff format" >&2; exit 1; }
	@$(VENV)/bin/ruff check --output-format=concise .
	@$(VENV)/bin/mypy competition
	@$(VENV)/bin/lint-imports --no-logo

lock: ## write both lock files again from pyproject.toml (needs uv)
	@command -v uv > /dev/null || { echo 'make lock needs uv: pip install uv' >&2; exit 1; }
	uv pip compile pyproject.toml --universal --python-version 3.11 --no-header -o requirements.lock
	uv pip compile pyproject.toml --extra dev -c requirements.lock --universal --python-version 3.11 --no-header -o requirements-dev.lock

clean: ## remove what tools left behind; runs, data and the environment stay
	@rm -rf build dist *.egg-info .benchmarks .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache
	@find competition tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo 'Maskfold needs Python 3.11 or newer; name one: make setup PYTHON=python3.12' >&2; exit 1; }
	@echo "making $(VENV) with $$($(PYTHON) --version)"
	@$(PYTHON) -m venv $(VENV)

# A stamp is written last, so that an installation that was stopped is taken up again.
$(VENV)/.requirements: requirements.lock | $(VENV)/bin/python
	@echo 'installing requirements.lock into $(VENV) (the first time takes some minutes)'
	@$(VENV)/bin/python -m pip install -qq --disable-pip-version-check -r requirements.lock
	@touch $@

$(VENV)/.requirements-dev: requirements-dev.lock $(VENV)/.requirements
	@echo 'installing requirements-dev.lock into $(VENV)'
	@$(VENV)/bin/python -m pip install -qq --disable-pip-version-check -r requirements-dev.lock
	@touch $@

$(VENV)/.project: pyproject.toml $(VENV)/.requirements
	@echo 'installing maskfold into $(VENV)'
	@$(VENV)/bin/python -m pip install -qq --disable-pip-version-check --no-deps -e .
	@touch $@
