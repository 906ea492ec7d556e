#!/usr/bin/env bash
# Makes .venv from requirements.lock on a fresh machine and checks that OpenGL renders. Run again at will.
set -euo pipefail
cd "$(dirname "$0")/.."

# A pyenv shim may exist and fail, so what counts is that the interpreter runs and is new enough.
runs() { "$@" -c 'import sys; sys.exit(sys.version_info < (3, 12))' >/dev/null 2>&1; }
find_python() {
  for candidate in "${PYTHON:-}" python3.12 python3.13 python3 python; do
    if [ -n "$candidate" ] && runs "$candidate"; then echo "$candidate"; return; fi
  done
  if command -v pyenv >/dev/null; then
    for version in $(pyenv versions --bare | grep -E '^3\.1[2-9]' || true); do
      candidate="$(pyenv prefix "$version")/bin/python"
      if runs "$candidate"; then echo "$candidate"; return; fi
    done
  fi
  return 1
}

say() { printf '\033[1m%s\033[0m\n' "$*"; }

if [ ! -x .venv/bin/python ] || ! runs .venv/bin/python; then
  if python="$(find_python)"; then
    say "making .venv with $($python --version)"
    "$python" -m venv --clear .venv
  elif command -v uv >/dev/null; then
    uv venv --clear --python 3.12 .venv
  else
    echo "error: no Python >= 3.12 found; install one or set PYTHON=/path/to/python3.12" >&2
    exit 1
  fi
fi

say "installing $(wc -l <requirements.lock) locked packages"
# --no-deps: the lock is complete, and hf-libero's metadata names packages that its environments do not need.
if command -v uv >/dev/null && uv --version >/dev/null 2>&1; then
  installer=(uv pip install --python .venv/bin/python)
else
  [ -x .venv/bin/pip ] || .venv/bin/python -m ensurepip --upgrade >/dev/null
  installer=(.venv/bin/python -m pip install --disable-pip-version-check)
fi
"${installer[@]}" --quiet --no-deps -r requirements.lock
"${installer[@]}" --quiet --no-deps --no-build-isolation --editable . --editable plugins/lerobot_policy_graspline \
  --editable plugins/lerobot_robot_graspline

say "checking OpenGL"
export MUJOCO_GL="${MUJOCO_GL:-$([ "$(uname)" = Linux ] && echo egl || echo glfw)}"
if ! .venv/bin/python -m scripts.check_gl; then
  say "no OpenGL back end renders; trying to install Mesa"
  if command -v apt-get >/dev/null && [ "$(id -u)" = 0 ]; then
    apt-get update -qq && apt-get install -y -qq libegl1 libgl1 libgles2 libegl-mesa0 libgl1-mesa-dri >/dev/null
  fi
  .venv/bin/python -m scripts.check_gl || { echo "error: install it yourself: sudo apt-get install -y libegl1 libgl1 libgles2 libegl-mesa0 libgl1-mesa-dri" >&2; exit 1; }
fi
touch .venv/.ready
