#!/usr/bin/env bash
# optax: Polyak's rule takes no step where ||gradient||^2 is below float64's epsilon.
#
# Expected: with the value f and the gradient g given, the step is f/||g||^2 g at every scale; on
# f = ||x||^2/2 it halves x. Seen with optax 0.2.8: for ||g||^2 <= 2.2e-16 polyak_sgd and contrib.momo
# return zero updates, in float32 as in float64, so runs never leave a saddle from that near, and a
# problem in small units never starts. A smaller eps= of polyak_sgd changes nothing.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet jax==0.10.2 jaxlib==0.10.2 numpy==2.4.6 optax==0.2.8
JAX_PLATFORMS=cpu "$folder/venv/bin/python" - <<'PY'
import jax
import jax.numpy as jnp
import optax

jax.config.update("jax_enable_x64", True)
print("jax", jax.__version__, "optax", optax.__version__)
assert optax.__version__ == "0.2.8"
rules = {"polyak_sgd": optax.polyak_sgd(), "polyak_sgd(eps=1e-30)": optax.polyak_sgd(eps=1e-30)}
rules["momo"] = optax.contrib.momo(1.0)
for dtype in (jnp.float32, jnp.float64):
    for name, rule in rules.items():
        moved = {}
        for size in (2e-8, 1e-8):
            x = jnp.array([size], dtype)
            update, _ = rule.update(x, rule.init(x), x, value=x @ x / 2)
            moved[size] = float(update[0] / x[0])
        print(dtype.__name__, name, "update/x at x = 2e-8 and 1e-8:", *moved.values())
        assert abs(moved[2e-8] + 0.5) < 1e-6
        assert moved[1e-8] == 0
PY
