# n2s-med: everything a user or a developer starts with. `make` alone lists the targets.

# The versions in constraints.txt were tested with 3.11, so that comes first; `make venv PYTHON=…` takes another.
PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3; do \
	"$$p" -c '' 2>/dev/null && { echo "$$p"; break; }; done)
PYTHON := $(or $(PYTHON),python3)
BIN := .venv/bin
STAMP := .venv/.installed

# One thread for each test worker: two OpenMP pools on one machine only wait for each other.
ONE_THREAD := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1

# Through the environment, so that a path may hold spaces and quotes.
export INPUT
# A developer's own tracking server must not fill up with test runs.
unexport MLFLOW_TRACKING_URI

.DEFAULT_GOAL := help
.PHONY: help venv demo bundles consumers peers test lint clean

help: ## list the targets
	@echo "n2s-med: denoise PET, CT and MR scans, trained on noisy scans only. For research use."
	@sed -n 's/^\([a-z]*\):.*## /\1 /p' $(MAKEFILE_LIST) | awk '{ printf "  make %-9s", $$1; $$1 = ""; print }'

venv: $(STAMP) ## set up .venv with everything that runs, tests and benchmarks need

$(STAMP): pyproject.toml constraints.txt
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
		echo "n2s-med needs Python 3.11 or newer; '$(PYTHON)' is" \
			"$$("$(PYTHON)" -V 2>/dev/null || echo not installed)." \
			"Install one, or name it: make venv PYTHON=/path/to/python3.12" >&2; exit 1; }
	@test -x $(BIN)/python || "$(PYTHON)" -m venv .venv || { \
		echo "No environment could be made: on Debian and Ubuntu, install python3-venv." >&2; exit 1; }
	@echo "Setting up .venv (PyTorch, MONAI, MLflow and more): a few minutes the first time ..."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check \
		-c constraints.txt -e ".[test,benchmarks]"
	@touch $(STAMP)
	@echo "Ready: .venv/bin/n2s-med"

demo: venv ## denoise a phantom, or your own scan with INPUT=path, into demo/
	@OMP_WAIT_POLICY=PASSIVE $(BIN)/python -m n2s_med.demo --out demo $${INPUT:+--input "$$INPUT"}

bundles: venv ## make the weights of the MONAI bundles from the base weights and the scans of N2S_DATA
	$(BIN)/python -m n2s_med.bundle adapt --recipe configs/bundles.json bundles/*_*

# MONAI Label, MONAI Deploy and NVFlare, each in an environment of its own: their pins clash with each other's.
CONSUMERS := monai_label monai_deploy nvflare
consumers: venv $(CONSUMERS:%=.venv-%/.installed) ## run the slow tests: every command of every bundle, and its consumers
	N2S_SLOW=1 $(ONE_THREAD) $(BIN)/python -m pytest tests/consumers -p no:cacheprovider
	for name in $(CONSUMERS); do \
		N2S_SLOW=1 $(ONE_THREAD) .venv-$$name/bin/python -m pytest tests/consumers/test_$$name.py \
			-p no:cacheprovider -W ignore || exit 1; \
	done

.venv-%/.installed: integrations/%/install.sh
	@"$(PYTHON)" -m venv .venv-$*
	@sh $< .venv-$*/bin/python
	@touch $@

peers: .venv-peers/.installed ## set up .venv-peers, in which benchmarks/peers.py runs the peers

# CAREamics bounds torchvision below the one of this PyTorch, hence without its own list of requirements.
.venv-peers/.installed: benchmarks/peers/requirements.txt benchmarks/peers/constraints.txt
	@"$(PYTHON)" -m venv .venv-peers
	@.venv-peers/bin/python -m pip install --quiet --disable-pip-version-check \
		-c benchmarks/peers/constraints.txt -r benchmarks/peers/requirements.txt
	@.venv-peers/bin/python -m pip install --quiet --disable-pip-version-check --no-deps careamics==0.3.5
	@touch $@

lint: venv ## run the static checks alone
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

test: lint ## run every check: lint, types, import contracts, tests with coverage
	$(ONE_THREAD) $(BIN)/python -m pytest -n 2 --cov --cov-report=term-missing:skip-covered

clean: ## remove .venv, the demo's output and every cache
	rm -rf .venv .venv-* demo build dist .coverage .coverage.* *.egg-info
	rm -rf .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find n2s_med tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +
