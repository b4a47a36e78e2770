#!/usr/bin/env bash
# Run the set-up, then check style and types and run the tests: `scripts/test.sh [fast|all] [PYTEST ARGUMENT]...`.
# `fast` is `make test-fast`, `all` is `make test-all` and what .ci/run calls, and neither is `make test`. See scripts/tiers.py.
set -euo pipefail
cd "$(dirname "$0")/.."
# Each process collects all tests, which takes some fifty core-seconds. So the smaller tiers use fewer processes. `all` uses two
# more than there are cores, because many of its tests wait for a server, a kill or a clock. (nproc itself obeys OMP_NUM_THREADS.)
cores=$(env -u OMP_NUM_THREADS nproc)
case "${1:-}" in
  fast) tests="not slow and not full and not soak"; processes=$cores; shift ;;
  all) tests="not soak"; processes=$((cores + 2)); shift ;;
  *) tests="not full and not soak"; processes=$cores ;;
esac
scripts/setup.sh test
bin=$PWD/.venv/bin

# Full tests open the report and the chat page in a browser, and call the server with OpenAI's client for Node.
browser() { command -v chromium || command -v chromium-browser || command -v google-chrome || command -v chrome; }
missing=()
if [ "$tests" = "not soak" ]; then
  browser >/dev/null || missing+=(chromium)
  command -v npm >/dev/null || missing+=(nodejs npm)
fi
if [ "${#missing[@]}" -gt 0 ]; then
  if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    echo "test: installing ${missing[*]}, which tests need" >&2
    apt-get update -qq >/dev/null && apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
  else
    echo "test: tests need ${missing[*]}, which is not installed:" >&2
    echo "  sudo apt-get update && sudo apt-get install -y ${missing[*]}" >&2
    exit 1
  fi
fi

profile=default
if [ "${RORQUAL_CI:-}" = 1 ]; then
  # hypothesis derives its examples from the test, so a commit always gets the same result. Elsewhere it samples new ones.
  profile=ci
  # A package that pins torch can silently replace its build.
  "$bin/python" -c 'import sys, torch; sys.exit(f"torch {torch.__version__} is a CUDA build" if torch.version.cuda else 0)'
fi
# If this is set, as in some containers, every process compiles all modules again.
unset PYTHONDONTWRITEBYTECODE
compiled=
if [ "${RORQUAL_CI:-}" = 1 ]; then
  # On a clean checkout, each test process would compile all tests: 15 seconds. One process does it, while mypy runs.
  "$bin/pytest" --collect-only -n 0 >/dev/null 2>&1 &
  compiled=$!
fi
"$bin/ruff" check .
"$bin/ruff" format --check --quiet .
"$bin/mypy"
"$bin/python" scripts/outliers.py
# One thread per process. With two on busy cores, OpenMP's spinning threads slow the working ones. Tests that need two threads
# use passive waiting.
export OMP_NUM_THREADS=1 OMP_WAIT_POLICY=passive
[ -z "$compiled" ] || wait "$compiled" || true # a failure shows again below
exec "$bin/pytest" -m "$tests" -n "${RORQUAL_TEST_PROCESSES:-$processes}" --dist worksteal --hypothesis-profile "$profile" "$@"
