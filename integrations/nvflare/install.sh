# Make an environment for NVFlare 2.9: sh install.sh PYTHON, from the root of n2s-med. No pins clash.
set -e
"$1" -m pip install --quiet --constraint constraints.txt torch==2.13.0 nvflare==2.9.0 pytest -e .
