# Everything from a fresh checkout, with nothing but Python 3.11 or newer and make.
#
# uv (hash-locked, in .uv/) makes .venv from requirements/all.txt (hash-locked) and installs this project into it,
# editable. Nothing is installed twice: .venv/.installed is the stamp.

SHELL := /bin/sh
.DEFAULT_GOAL := help
.SUFFIXES:
MAKEFLAGS += --no-builtin-rules
.NOTPARALLEL:

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
LOCK := requirements/all.txt
RUN_LOCK := requirements/run.txt
BENCH := .venv-bench
BENCH_LOCK := requirements/bench.txt
UV_LOCK := requirements/uv.txt
# The oldest uv on PATH that is used as it is. 0.9.0 (October 2025) was run against this file.
UV_OLDEST := 0.9.0

# Ray re-creates the environment in every worker when it sees `uv run`, which is never used here.
export RAY_ENABLE_UV_RUN_RUNTIME_ENV := 0
export RAY_USAGE_STATS_ENABLED ?= 0
# Whatever this project installs is what the lock names: no other interpreter, no other index's pick.
export UV_PYTHON_DOWNLOADS := never
export UV_NO_PROGRESS := 1

DEMO_PROMPT ?= Summarise this text in one sentence.
PYTEST_ARGS ?=

.PHONY: help
help: ## Show this list.
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1\t/' | \
	  while IFS="$$(printf '\t')" read -r name text; do printf '  make %-10s %s\n' "$$name" "$$text"; done

.PHONY: demo
demo: install ## Summarise four texts at once with a small model on this machine. No key, no network.
	$(BIN)/palaver run "$(DEMO_PROMPT)" --over examples/texts/*.txt --model local --concurrency 2

.PHONY: check
check: static test ## Everything: format, lint, strict types, tests.

.PHONY: static
static: install ## Format, lint and strict types, without the tests.
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright

.PHONY: test
test: install ## The tests. PYTEST_ARGS="-k budget" narrows them.
	$(BIN)/python -m pytest $(PYTEST_ARGS)

.PHONY: format
format: install ## Rewrite the sources in the house format and mend what ruff can.
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

.PHONY: scoreboard
scoreboard: install ## Find out anew what each adapter can do: docs/scoreboard.md.
	PALAVER_SCOREBOARD=write $(BIN)/python -m pytest tests/test_scoreboard.py

.PHONY: bench
bench: install $(BENCH)/.installed ## The benchmarks: each prints a ratio against a baseline of the same run.
	@set -e; found=; for bench in bench/*.py; do \
	  [ -e "$$bench" ] && [ "$$bench" != bench/report.py ] || continue; found=1; echo "== $$bench"; $(BIN)/python "$$bench"; \
	done; [ -n "$$found" ] || echo "no benchmarks in bench/"

# The bytecode of the project's own modules is renewed before every run (40 ms): where PYTHONDONTWRITEBYTECODE is set,
# each actor's process would otherwise compile them anew, 26 ms of CPU each (43 modules, November 2026).
.PHONY: install
install: $(STAMP) ## Make .venv from the lock. Does nothing when it is up to date.
	@$(BIN)/python -m compileall -q actors providers tools

# The build backend is that of the lock. It builds from a copy, since it leaves folders in what it builds from.
.PHONY: wheel
wheel: install ## What a cluster's nodes install, in dist/: the wheel, its lock, install.sh (see docs/clusters.md).
	@set -e; rm -rf dist; source=$$(mktemp -d); trap 'rm -rf "$$source"' EXIT; \
	cp -R pyproject.toml README.md LICENSE actors providers tools "$$source"; mkdir dist; \
	(cd "$$source" && "$(CURDIR)/$(BIN)/python" -c \
	  "import sys, setuptools.build_meta as backend; backend.build_wheel(sys.argv[1])" "$(CURDIR)/dist") >/dev/null 2>&1; \
	cp $(RUN_LOCK) deploy/install.sh dist; ls dist

# The other frameworks that bench/map.py compares with, in an environment of their own.
$(BENCH)/.installed: $(BENCH_LOCK)
	@$(FIND_PYTHON); $(FIND_UV); $(UV_SETTINGS); set -e; \
	echo "installing $(BENCH_LOCK) into $(BENCH)"; \
	"$$uv" venv --quiet --clear --no-project --python $(BIN)/python $(BENCH); \
	"$$uv" pip sync --quiet --python $(BENCH)/bin/python --require-hashes --compile-bytecode $(BENCH_LOCK); \
	touch $@

# Prints the path of the Python to use: $PYTHON, else python3, else the newest of the versioned names.
define FIND_PYTHON
fits() { "$$1" -c 'import sys; raise SystemExit(sys.version_info < (3, 11))' >/dev/null 2>&1; }; \
python=; for candidate in $${PYTHON:-python3 python3.14 python3.13 python3.12 python3.11}; do \
  if fits "$$candidate"; then python=$$candidate; break; fi; \
done; \
if [ -z "$$python" ]; then \
  { echo "palaver needs Python 3.11 or newer, and found none."; \
    for candidate in $${PYTHON:-python3 python3.14 python3.13 python3.12 python3.11}; do \
      echo "  $$candidate: $$("$$candidate" --version 2>/dev/null || echo 'not there, or does not run')"; \
    done; \
    echo "Install Python 3.11 or newer and say where it is: make PYTHON=/path/to/python3 <target>"; \
  } >&2; exit 1; \
fi
endef

# Sets $uv: one on PATH that is new enough, else .uv/bin/uv, made here from its own lock.
define FIND_UV
uv=; \
if found=$$(command -v uv 2>/dev/null); then \
  version=$$("$$found" --version 2>/dev/null | cut -d ' ' -f 2); \
  if "$$python" -c 'import re, sys; have, want = (tuple(map(int, re.findall(r"\d+", v)[:3])) for v in sys.argv[1:]); raise SystemExit(have < want)' \
    "$${version:-0}" $(UV_OLDEST); then uv=$$found; fi; \
fi; \
if [ -z "$$uv" ]; then $(MAKE) --silent --no-print-directory .uv/.installed PYTHON="$$python" || exit 1; uv=.uv/bin/uv; fi
endef

# uv trusts its own list of certificates; a machine that has a list of its own (a company's proxy) means that one.
# uv keeps what it downloads below HOME; where that cannot be written, beside itself.
define UV_SETTINGS
for bundle in /etc/ssl/certs/ca-certificates.crt /etc/pki/tls/certs/ca-bundle.crt /etc/ssl/cert.pem; do \
  if [ -r "$$bundle" ]; then export UV_SYSTEM_CERTS=$${UV_SYSTEM_CERTS:-true} UV_NATIVE_TLS=$${UV_NATIVE_TLS:-true}; fi; \
done; \
cache=$${UV_CACHE_DIR:-$${XDG_CACHE_HOME:-$${HOME:-/nonexistent}/.cache}/uv}; \
if ! mkdir -p "$$cache" 2>/dev/null || ! [ -w "$$cache" ]; then cache=$(CURDIR)/.uv/cache; fi; \
export UV_CACHE_DIR="$$cache"
endef

.uv/.installed: $(UV_LOCK)
	@$(FIND_PYTHON); \
	"$$python" -c 'import venv, ensurepip' 2>/dev/null || { \
	  echo "$$python ($$("$$python" --version)) comes without the modules venv and ensurepip, which make .uv/." >&2; \
	  echo "On Debian and Ubuntu: apt-get install python3-venv. Or put uv $(UV_OLDEST) or newer on PATH," >&2; \
	  echo "or name another Python: make PYTHON=/path/to/python3 <target>" >&2; exit 1; }; \
	set -e; echo "making .uv (uv, from $(UV_LOCK))"; \
	rm -rf .uv; "$$python" -m venv .uv; \
	.uv/bin/python -m pip install --quiet --disable-pip-version-check --no-cache-dir --no-deps --only-binary :all: \
	  --require-hashes --requirement $(UV_LOCK); \
	touch $@

# The stamp is older than the lock or pyproject.toml, or not there: bring .venv in line with them.
$(STAMP): $(LOCK) pyproject.toml
	@$(FIND_PYTHON); $(FIND_UV); $(UV_SETTINGS); set -e; \
	if ! $(BIN)/python -c 'import sys; raise SystemExit(sys.version_info < (3, 11))' >/dev/null 2>&1; then \
	  echo "making $(VENV) with $$("$$python" --version)"; \
	  "$$uv" venv --quiet --clear --no-project --python "$$(command -v "$$python")" $(VENV); \
	fi; \
	echo "installing $(LOCK) into $(VENV)"; \
	"$$uv" pip sync --quiet --python $(BIN)/python --require-hashes --compile-bytecode $(LOCK); \
	"$$uv" pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation --editable .; \
	touch $@

# The lock names versions and hashes, and no host: it holds wherever the packages come from.
.PHONY: lock
lock: ## Renew requirements/*.txt after pyproject.toml changed. UPGRADE=1 takes the newest of everything.
	@$(FIND_PYTHON); set -e; $(MAKE) --silent --no-print-directory .uv/.installed PYTHON="$$python"; $(UV_SETTINGS); \
	unset UV_INDEX UV_INDEX_URL UV_DEFAULT_INDEX UV_EXTRA_INDEX_URL UV_FIND_LINKS; \
	compile() { .uv/bin/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes \
	  --no-emit-index-url --no-emit-find-links --custom-compile-command "make lock" \
	  $(if $(UPGRADE),--upgrade) "$$@"; }; \
	compile --all-extras --group dev --group weights --group build pyproject.toml --output-file $(LOCK); \
	compile --all-extras --constraint $(LOCK) pyproject.toml --output-file $(RUN_LOCK); \
	compile --group bench --output-file $(BENCH_LOCK); \
	compile --no-config requirements/uv.in --output-file $(UV_LOCK)

.PHONY: clean
clean: ## Remove .venv, .uv, caches and builds.
	rm -rf $(VENV) $(BENCH) .uv build dist *.egg-info .pytest_cache .ruff_cache .hypothesis .coverage
	find actors providers tools tests examples bench -name __pycache__ -type d -prune -exec rm -rf {} +
