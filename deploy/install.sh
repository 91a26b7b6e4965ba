#!/bin/sh
# Makes .venv beside this file: palaver from the wheel here, and what it needs from run.txt, by hash. Run on every
# node; again after an upgrade. What `make wheel` puts into dist/ is all that it reads.
#
# PYTHON names the Python to use (python3). It has to be of the same version on all nodes and on the machine that
# drives them. uv is used where it is on PATH, else pip.
set -eu
cd "$(dirname "$0")"

python=${PYTHON:-python3}
"$python" -c 'import sys; raise SystemExit(sys.version_info < (3, 11))' || {
  echo "palaver needs Python 3.11 or newer; $python is $("$python" --version 2>&1). Set PYTHON." >&2
  exit 1
}
set -- palaver-*.whl
[ -e "$1" ] && [ $# -eq 1 ] || { echo "one wheel of palaver has to be in $(pwd), there are: $*" >&2; exit 1; }

# Bytecode is compiled here, once: every process of Ray would otherwise compile it anew.
if command -v uv >/dev/null 2>&1; then
  [ -x .venv/bin/python ] || uv venv --quiet --no-project --python "$(command -v "$python")" .venv
  uv pip sync --quiet --python .venv/bin/python --require-hashes --compile-bytecode run.txt
  uv pip install --quiet --python .venv/bin/python --no-deps --compile-bytecode "./$1"
else
  [ -x .venv/bin/python ] || "$python" -m venv .venv
  .venv/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes --requirement run.txt
  .venv/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --force-reinstall "./$1"
fi
.venv/bin/palaver --version
