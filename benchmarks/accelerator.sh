#!/usr/bin/env bash
# All that is to be measured on an accelerator, in one command of at most eight minutes that needs no network.
#
#   benchmarks/accelerator.sh --out=runs/accelerator
#   benchmarks/accelerator.sh --out=runs/accelerator --toy
#
# --out=DIR is where accelerator.json, accelerator.log and profile.tar.gz go; --toy does all of it at toy size, on any
# machine; --only=PART, which may be repeated, does only some of it. PYTHON names the interpreter, whose JAX must know
# the accelerator; by default it is that of .venv, or else `python3`.
#
# WHEELS=DIR has the packages that the interpreter lacks, as wheels; nothing is installed, they are unpacked for this
# command alone. Where there is a network they are fetched by the following, with --python-version and --platform where
# the machine's differ:
#
#   pip download --no-deps --only-binary=:all: --dest wheels clu ml_collections jsonschema jsonschema-specifications \
#     referencing rpds-py
set -euo pipefail
cd "$(dirname "$0")/.."

python=${PYTHON:-.venv/bin/python}
command -v "$python" >/dev/null || python=python3
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

for wheel in ${WHEELS:+"$WHEELS"/*.whl}; do
  package=$(basename "$wheel")
  "$python" -c "import importlib.metadata as m, sys; m.version(sys.argv[1])" "${package%%-*}" 2>/dev/null ||
    "$python" -m zipfile -e "$wheel" "$scratch/packages"
done
export PYTHONPATH=.:$scratch/packages
export JAX_COMPILATION_CACHE_DIR=$scratch/xla XDG_CACHE_HOME=$scratch/cache

"$python" - <<'EOF'
import importlib.util
import sys

needed = "absl chex clu flax jax jinja2 jsonschema matplotlib ml_collections numpy optax orbax PIL pytest safetensors tqdm"
missing = [name for name in needed.split() if importlib.util.find_spec(name) is None]
if missing:
    print(f"accelerator.sh: {sys.executable} has no {', '.join(missing)}: see WHEELS in this script.", file=sys.stderr)
    sys.exit(2)
EOF
"$python" -m benchmarks.accelerator --scratch="$scratch" "$@"
