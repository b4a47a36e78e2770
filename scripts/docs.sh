#!/usr/bin/env bash
# Build the documentation site into site/ and stop at the first warning. The pages open from the disk, without a network.
set -euo pipefail
cd "$(dirname "$0")/.."
scripts/setup.sh docs
# Material for MkDocs prints a notice about its successor at every start.
NO_MKDOCS_2_WARNING=1 .venv/bin/python -m mkdocs build --strict --quiet
echo "site/index.html"
