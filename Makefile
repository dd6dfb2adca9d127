# `make up` runs the service, `make test` the tests; each installs what it needs first.

VENV := .venv
PYTHON ?= python3
UV_VERSION := 0.13.9
INSTALLED := $(VENV)/.installed

# The system's certificates, also in an otherwise empty environment (pip brings its own list, uv too).
CERTIFICATES := $(firstword $(wildcard /etc/ssl/certs/ca-certificates.crt /etc/pki/tls/certs/ca-bundle.crt /etc/ssl/cert.pem))
ifneq ($(CERTIFICATES),)
export PIP_CERT ?= $(CERTIFICATES)
export SSL_CERT_FILE ?= $(CERTIFICATES)
endif
export UV_SYSTEM_CERTS ?= 1
export PIP_DISABLE_PIP_VERSION_CHECK ?= 1

.PHONY: install up test fuzz test-javascript test-asyncapi check bench bench-size bench-fairness bench-schedules \
  chaos mutants state-machine soak faults cluster clean

install: $(INSTALLED)

$(INSTALLED): pyproject.toml uv.lock
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install --quiet uv==$(UV_VERSION)
	VIRTUAL_ENV= UV_PROJECT_ENVIRONMENT=$(VENV) $(VENV)/bin/uv sync --locked --quiet --compile-bytecode
	@touch $@

up: install
	@$(VENV)/bin/runwire up

# The tests go by real seconds, and four at once may be too many for a busy machine: what fails is shown, and tried once
# more by itself. It has to pass then.
test: check
	$(VENV)/bin/pytest --numprocesses 4 --dist worksteal || \
	  $(VENV)/bin/pytest --last-failed --last-failed-no-failures none --maxfail 5

# Every hostile value in every place, where `make test` sends an eighth of them to each.
fuzz: install
	FUZZ_SHARE=1 $(VENV)/bin/pytest --numprocesses 3 tests/integration/test_bad_input.py tests/integration/test_openapi.py

# The example of a worker in JavaScript; needs Node.js 20 and npm.
test-javascript: install
	cd examples/javascript-worker && npm install --no-audit --no-fund --loglevel=error && npm test

# The AsyncAPI document, read by the parser of those who write the specification; needs Node.js 20 and npm.
test-asyncapi: install
	cd tests/asyncapi && npm install --no-audit --no-fund --loglevel=error
	$(VENV)/bin/python -m tests.asyncapi | node tests/asyncapi/check.mjs

check: install
	$(VENV)/bin/ruff check
	$(VENV)/bin/ruff format --check
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports

bench: install
	$(VENV)/bin/python -m benchmarks.execute

bench-size: install
	$(VENV)/bin/python -m benchmarks.size $(SIZE_OPTIONS)

bench-fairness: install
	$(VENV)/bin/python -m benchmarks.fairness

bench-schedules: install
	$(VENV)/bin/python -m benchmarks.schedules $(SCHEDULES_OPTIONS)

# Kills, freezes and cuts off everything while it is called; e.g. CHAOS_OPTIONS="--quick --seed 7".
chaos: install
	@$(VENV)/bin/python -m tests.chaos $(CHAOS_OPTIONS)

# Breaks the system in every known way; `make chaos` has to notice each.
mutants: install
	@$(VENV)/bin/python -m tests.chaos.mutants $(MUTANTS_OPTIONS)

# What needs root: cuts the power, fills disks, takes memory and packets away; e.g. FAULTS_OPTIONS="power-cut --cuts 5".
faults: install
	@$(VENV)/bin/python -m tests.faults $(FAULTS_OPTIONS)

# The protocol's own code in a simulation that hypothesis leads astray, at other places each time.
EXAMPLES ?= 4000
state-machine: install
	STATE_MACHINE_EXAMPLES=$(EXAMPLES) $(VENV)/bin/pytest -q tests/unit/test_state_machine.py -k promise_is_broken

# Calls and faults for an hour, and nothing grows; e.g. SOAK_OPTIONS="--minutes 15", or "--hours 12".
soak: install
	@$(VENV)/bin/python -m tests.chaos.soak $(SOAK_OPTIONS)

# As chaos, on three servers of which one after the other fails; e.g. CLUSTER_OPTIONS="--quick --seed 7".
cluster: install
	@$(VENV)/bin/python -m tests.cluster $(CLUSTER_OPTIONS)

clean:
	rm -rf $(VENV)
