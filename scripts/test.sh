#!/usr/bin/env bash
# Sets itself up, then runs every check: style, types, tests. `make test` and .ci/run call it; arguments go to pytest.
set -euo pipefail
cd "$(dirname "$0")/.."
scripts/setup.sh test
bin=$PWD/.venv/bin

# The report and the chat page are opened in a browser, and the server is asked by OpenAI's client for Node.
browser() { command -v chromium || command -v chromium-browser || command -v google-chrome || command -v chrome; }
missing=()
browser >/dev/null || missing+=(chromium)
command -v npm >/dev/null || missing+=(nodejs npm)
if [ "${#missing[@]}" -gt 0 ]; then
  if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    echo "test: installing ${missing[*]}, which tests use" >&2
    apt-get update -qq >/dev/null && apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
  else
    echo "test: tests use ${missing[*]}, which is missing here:" >&2
    echo "  sudo apt-get update && sudo apt-get install -y ${missing[*]}" >&2
    exit 1
  fi
fi

profile=default
if [ "${RORQUAL_CI:-}" = 1 ]; then
  # Examples by the test alone: one commit has one verdict. Elsewhere hypothesis looks for new ones each time.
  profile=ci
  # A package that pins torch can swap its build without a word.
  "$bin/python" -c 'import sys, torch; sys.exit(f"torch {torch.__version__} is a CUDA build" if torch.version.cuda else 0)'
fi
"$bin/ruff" check .
"$bin/ruff" format --check --quiet .
"$bin/mypy"
"$bin/python" scripts/outliers.py
# One thread a process: with two, on busy cores, OpenMP's waiting threads take the time of the working ones. Tests that ask for two have them
# wait asleep.
export OMP_NUM_THREADS=1 OMP_WAIT_POLICY=passive
# Where containers set this, each process that a test starts compiles torch anew: three seconds of processor time.
unset PYTHONDONTWRITEBYTECODE
# One process more than cores: many tests wait for a server, a kill or a clock.
exec "$bin/pytest" -m "not soak" -n "${RORQUAL_TEST_PROCESSES:-$(($(nproc) + 1))}" --dist worksteal --hypothesis-profile "$profile" "$@"
