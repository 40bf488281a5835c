#!/usr/bin/env bash
# optax: a float64 rate turns the float32 state of some optimizers into float64.
#
# Expected: the state keeps its dtypes, as lax.scan asks of a carry. Seen with optax 0.2.8 under
# jax_enable_x64, float32 parameters and a rate or scale of type np.float64: after one update the
# states of contrib.schedule_free_sgd, contrib.cocob and lars hold float64, and a scan over updates
# raises TypeError. sgd with momentum and adam keep their state's dtypes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet jax==0.10.2 jaxlib==0.10.2 numpy==2.4.6 optax==0.2.8
JAX_PLATFORMS=cpu "$folder/venv/bin/python" - <<'PY'
import jax
import jax.numpy as jnp
import numpy as np
import optax

jax.config.update("jax_enable_x64", True)
print("jax", jax.__version__, "optax", optax.__version__)
assert optax.__version__ == "0.2.8"
x, rate = jnp.ones(3, jnp.float32), np.float64(0.1)


def widened(rule):
    before = rule.init(x)
    after = rule.update(x, before, x)[1]
    pairs = zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True)
    return sum(a.dtype == jnp.float32 and b.dtype == jnp.float64 for a, b in pairs)


def scanned(rule):
    def step(state, _):
        return rule.update(x, state, x)[1], None

    return jax.lax.scan(step, rule.init(x), None, length=2)


for make in (optax.contrib.schedule_free_sgd, optax.contrib.cocob, optax.lars):
    count = widened(make(rate))
    print(f"{make.__name__}: {count} arrays of the state became float64")
    assert count > 0
    try:
        scanned(make(rate))
    except TypeError as error:
        assert "carry" in str(error)
    else:
        raise SystemExit(f"a scan takes {make.__name__} now")
    assert widened(make(0.1)) == 0
for rule in (optax.sgd(rate, 0.9), optax.adam(rate)):
    assert widened(rule) == 0
    scanned(rule)
print("sgd with momentum, adam: none")
PY
