# Needs make and a Python of 3.11 or later; everything else is installed into .venv by the lock in requirements/.

ifeq ($(origin PYTHON),undefined)
CANDIDATES := python3 python3.14 python3.13 python3.12 python3.11
else
CANDIDATES := "$(PYTHON)"
endif

BIN := .venv/bin
LOCK := requirements/dev.txt
ROOMS := adapters contracts domain handlers migrations

# uv's own variables could point it at another environment than ours.
unexport VIRTUAL_ENV UV_PYTHON UV_PROJECT_ENVIRONMENT

COMPILE = $(BIN)/uv pip compile --quiet --universal --generate-hashes --no-emit-index-url --no-annotate \
	--custom-compile-command "make lock" $(if $(UPGRADE),--upgrade)

.PHONY: help setup run test soak races lint format docs pictures bench lock compose-env clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' Makefile

setup: .venv/ready ## make .venv and install what the lock names (PYTHON=… chooses the interpreter)

run: setup ## start everything on this machine: service, PostgreSQL, NATS, Valkey, mail sink
	@$(BIN)/user-service dev $(ARGS)

# Most tests wait more than they work: five at a time keep two cores busy.
test: setup ## run the tests (ARGS="tests/unit -k lockout" for a part)
	@$(BIN)/pytest $(if $(ARGS),$(ARGS),-n 5 --dist loadfile --no-loadscope-reorder)

soak: setup ## ten rounds of random deaths (SEEDS="3 7" for some), what answers tell by their time (ARGS for pytest)
	@EXEC=1 $(if $(SEEDS),SEEDS="$(SEEDS)" )$(BIN)/pytest tests/soak -m soak -p no:randomly -s $(ARGS)

races: setup ## every race between callers, fifty rounds each
	@RACE_ROUNDS=50 $(BIN)/pytest tests/end_to_end/test_session_races.py tests/end_to_end/test_two_factor_races.py \
		tests/end_to_end/test_passwords.py tests/faults/test_operators.py tests/integration/test_last_admin.py $(ARGS)

lint: setup ## format, lint, types and import rules, as CI checks them
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports --no-logo

format: setup ## lay the code out and mend what ruff can mend
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

docs: setup ## write the pages of docs/ that follow from code
	@$(BIN)/python -m docs.generate

pictures: setup ## play the console's story in Chromium and keep its pictures in docs/pictures
	@mkdir -p docs/pictures
	@CONSOLE_PICTURES=docs/pictures $(BIN)/pytest tests/faults/test_console.py -k browser -p no:randomly $(ARGS)

bench: setup ## measure every operation, and sign-in beside the bare hash
	@$(BIN)/python -m benchmarks $(ARGS)

lock: $(BIN)/uv ## remake requirements/ from pyproject.toml (UPGRADE=1 takes the newest releases)
	@$(COMPILE) --group installer --output-file requirements/uv.txt
	@$(COMPILE) --group build --output-file requirements/build.txt
	@$(COMPILE) pyproject.toml --extra otel --output-file requirements/run.txt
	@$(COMPILE) pyproject.toml --extra dev --extra otel --group test --constraints requirements/run.txt --output-file $(LOCK)

compose-env: ## write .env with random secrets for compose.yaml, once
	@sh deploy/compose_env.sh

clean: ## remove .venv, caches and what was built; data of `make run` in .dev stays
	@rm -rf .venv build dist .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
	@find $(ROOMS) tests deploy -name __pycache__ -prune -exec rm -rf {} +

# All paths are relative, so that a folder with a space in its name is no matter to make.
.venv/ready: $(BIN)/uv pyproject.toml $(LOCK) requirements/build.txt deploy/build_argon2.py
	@$(BIN)/uv pip sync --quiet --require-hashes --compile-bytecode --python $(BIN)/python requirements/uv.txt $(LOCK)
	@$(BIN)/uv pip install --quiet --no-deps --build-constraints requirements/build.txt --python $(BIN)/python --editable .
	@$(BIN)/python deploy/build_argon2.py
	@$(BIN)/python -m compileall -q $(ROOMS)
	@touch $@

$(BIN)/uv: requirements/uv.txt
	@for python in $(CANDIDATES); do \
		"$$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && break; python=; \
	done; \
	[ -n "$$python" ] || { echo "setup: no Python of 3.11 or later found; name one with PYTHON=/path/to/python3" >&2; exit 1; }; \
	"$$python" -c 'import ensurepip, venv' 2>/dev/null || { \
		echo "setup: $$python cannot make environments; on Debian and Ubuntu: apt install python3-venv" >&2; exit 1; }; \
	$(BIN)/python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || "$$python" -m venv --clear .venv; \
	$(BIN)/python -m pip --version >/dev/null 2>&1 || $(BIN)/python -m ensurepip >/dev/null
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes --requirement requirements/uv.txt
	@touch $@
