# Each target sets up what it needs: a virtual environment from the hash-locked requirement files.
PYTHON ?= python3
VENV ?= .venv
VLLM_VENV ?= .venv-vllm
BIN := $(VENV)/bin
ARGS ?=
JOBS ?= 2

.PHONY: up demo test check test-docker test-compose test-vllm test-slow test-postgres chaos sim bench docs lock clean-venv

up: $(VENV)/.installed
	@$(BIN)/muster up --demo $(ARGS)

demo: $(VENV)/.installed
	@$(BIN)/muster demo $(ARGS)

test: $(VENV)/.installed-dev
	@$(BIN)/pytest tests -m "not docker and not compose and not vllm and not slow" -n $(JOBS) --dist worksteal $(ARGS)

# Starts a Docker Engine of its own (root, dockerd, unshare): private socket, data and network, removed at the end.
test-docker: $(VENV)/.installed-dev
	@TESTS_OWN_NETWORK=1 unshare --net sh -c 'ip link set lo up && ip address add 192.0.2.1/32 dev lo && exec $(BIN)/pytest tests -m docker $(ARGS)'

# The same for deploy/compose.yaml, with base images that are made here (debootstrap, docker-compose; the first time asks the
# network for Debian and wheels).
test-compose: $(VENV)/.installed-dev
	@$(BIN)/python -m tests.compose.base_images
	@TESTS_OWN_NETWORK=1 unshare --net --mount sh -c 'mount -t tmpfs tmpfs /run && ip link set lo up && ip address add 192.0.2.1/32 dev lo && exec $(BIN)/pytest tests/compose -m compose $(ARGS)'

# Real vLLM, built for processors, in an environment of its own (3 GB; its torch wants PyTorch's index: PIP_EXTRA_INDEX_URL).
test-vllm: $(VENV)/.installed-dev $(VLLM_VENV)/.installed
	@OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 TESTS_VLLM=$(abspath $(VLLM_VENV))/bin/vllm $(BIN)/pytest tests/vllm -m vllm $(ARGS)

check: $(VENV)/.installed-dev
	@$(BIN)/ruff format --check . && $(BIN)/ruff check . && $(BIN)/pyright && $(BIN)/lint-imports && $(BIN)/python docs/generate.py --check

# What takes minutes: a hundred kills of a download, ten workers and one gigabyte.
test-slow: $(VENV)/.installed-dev
	@$(BIN)/pytest tests -m slow $(ARGS)

# Another PostgreSQL than the wheel's: make test-postgres BIN_DIR=/usr/lib/postgresql/15/bin
POSTGRES_TESTS := tests/kernel/projections tests/services/up/test_embedded_postgres.py \
	$(addprefix tests/e2e/, test_the_main_job.py test_writes.py test_pending.py test_bad_events.py test_faults.py)

test-postgres: $(VENV)/.installed-dev
	@test -x "$(BIN_DIR)/initdb" || { echo "BIN_DIR=$(BIN_DIR) has no initdb"; exit 2; }
	@MUSTER_POSTGRES_BIN=$(BIN_DIR) $(BIN)/pytest $(POSTGRES_TESTS) $(ARGS)

chaos: $(VENV)/.installed-dev
	@$(BIN)/python -m tests.chaos.run $(ARGS)

SEEDS ?= 0-1999

sim: $(VENV)/.installed-dev
	@$(BIN)/python -m tests.simulation.run --seeds $(SEEDS) $(ARGS)

bench: $(VENV)/.installed-dev
	@$(BIN)/python -m bench $(ARGS)

docs: $(VENV)/.installed-dev
	@$(BIN)/python docs/generate.py

# Locks name no index; both files are made from pyproject.toml.
lock: $(VENV)/.installed-dev
	$(BIN)/uv pip compile -q --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header --extra up pyproject.toml -o requirements.txt
	$(BIN)/uv pip compile -q --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header --extra dev -c requirements.txt pyproject.toml -o requirements-dev.txt
	for service in api,cli scheduler agent downloader; do \
	  $(BIN)/uv pip compile -q --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header -c requirements.txt \
	    $$(printf -- '--extra %s ' $$(echo $$service,image$$(test $$service != agent || echo ,engine) | tr , ' ')) pyproject.toml \
	    -o deploy/requirements/$${service%%,*}.txt; \
	done

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit("Muster needs Python 3.11 or newer, this is " + sys.version.split()[0]) if sys.version_info < (3, 11) else None'
	@$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: $(VENV)/bin/python requirements.txt pyproject.toml
	@echo "Setting up $(VENV) (once) ..."
	@test -f $(VENV)/.installed-dev || $(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements.txt
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --no-index -e .
	@$(BIN)/python -m compileall -q $(VENV)/lib schemas kernel services >/dev/null || true
	@touch $@

$(VENV)/.installed-dev: $(VENV)/bin/python requirements-dev.txt pyproject.toml
	@echo "Setting up $(VENV) with the tools of developers (once) ..."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements-dev.txt
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --no-index -e .
	@touch $@ $(VENV)/.installed

$(VLLM_VENV)/.installed: requirements-vllm.txt
	@echo "Setting up $(VLLM_VENV) (once) ..."
	@$(PYTHON) -m venv $(VLLM_VENV)
	@$(VLLM_VENV)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --require-hashes -r requirements-vllm.txt
	@$(VLLM_VENV)/bin/python tests/vllm/environment.py
	@touch $@
