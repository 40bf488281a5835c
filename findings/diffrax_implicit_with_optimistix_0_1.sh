#!/usr/bin/env bash
# diffrax 0.7.1 with optimistix 0.1.0: every implicit solver raises, and nothing forbids the pair.
#
# Expected: releases that the metadata admit together work together. diffrax 0.7.1 asks for
# optimistix 0.0.10 or later, so an environment that holds diffrax back gets optimistix 0.1.0. Seen:
# y' = -y by Kvaerno5 ends in EquinoxRuntimeError; explicit solvers do not. With optimistix 0.0.11, or
# with diffrax 0.7.2 and optimistix 0.1.0, the same call returns exp(-1).
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
pip() { "$folder/venv/bin/pip" install --quiet "$@"; }
pip jax==0.10.2 jaxlib==0.10.2 numpy==2.4.6 equinox==0.13.8 lineax==0.1.1 \
  diffrax==0.7.1 optimistix==0.1.0
"$folder/venv/bin/pip" check
cat >"$folder/solve.py" <<'PY'
import sys
from importlib.metadata import version

import diffrax
import jax
import jax.numpy as jnp

jax.config.update("jax_enable_x64", True)
print("diffrax", version("diffrax"), "optimistix", version("optimistix"))
term = diffrax.ODETerm(lambda t, y, args: -y)
steps = diffrax.PIDController(rtol=1e-8, atol=1e-8)


def solve(solver):
    run = diffrax.diffeqsolve(term, solver, 0.0, 1.0, 0.01, jnp.ones(2), stepsize_controller=steps)
    assert jnp.allclose(run.ys[-1], jnp.exp(-1.0), rtol=1e-6)
    return "right"


print("Dopri5:", solve(diffrax.Dopri5()))
try:
    found = solve(diffrax.Kvaerno5())
except Exception as error:
    found = type(error).__name__
print("Kvaerno5:", found)
assert (found == "right") is (sys.argv[1] == "right")
PY
run() { JAX_PLATFORMS=cpu "$folder/venv/bin/python" "$folder/solve.py" "$1" 2>/dev/null; }
run raises
pip diffrax==0.7.2
run right
pip diffrax==0.7.1 optimistix==0.0.11
run right
