#!/bin/sh
# What has to hold on a machine with a GPU, in at most 8 minutes: bench/gpu.sh ROOT PYTHON_OF_ROOT. Prints a table, and
# fails if something does not hold. Without a GPU it runs to its end too, and names what it skips.
set -eu
root=${1:?usage: bench/gpu.sh ROOT PYTHON_OF_ROOT}
python_of_root=${2:?usage: bench/gpu.sh ROOT PYTHON_OF_ROOT}
cd "$(dirname "$0")/.."
exec "${PYTHON:-.venv/bin/python}" bench/gpu.py --root "$root" --python "$python_of_root" --seconds 480
