#!/usr/bin/env bash
# optax: scale_by_muon() with its default dimension numbers takes no tree of parameters.
#
# Expected: by default every matrix is orthogonalized, as optax.contrib.muon does by default.
# Seen with optax 0.2.8: update() raises ValueError "pytree structure error" for a tuple, a list and a
# dict of matrices; one bare matrix works, and so does contrib.muon on the same trees.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet jax==0.10.2 jaxlib==0.10.2 numpy==2.4.6 optax==0.2.8
JAX_PLATFORMS=cpu "$folder/venv/bin/python" - <<'PY'
import jax
import jax.numpy as jnp
import optax

print("jax", jax.__version__, "optax", optax.__version__)
assert optax.__version__ == "0.2.8"
a, b = jnp.ones((4, 3)), jnp.ones((2, 4))


def updated(rule, tree):
    return jax.tree.map(jnp.shape, rule.update(tree, rule.init(tree), tree)[0])


bare = updated(optax.contrib.scale_by_muon(), a)
print("a bare matrix:", bare)
assert bare == (4, 3)
for tree in ((a, b), [a, b], {"a": a, "b": b}):
    kind = type(tree).__name__
    try:
        updated(optax.contrib.scale_by_muon(), tree)
    except ValueError as error:
        print(f"a {kind} of two:", str(error).splitlines()[0])
        assert "pytree structure error" in str(error)
    else:
        raise SystemExit(f"a {kind} is taken now")
    assert jax.tree.leaves(updated(optax.contrib.muon(0.1), tree)) == [4, 3, 2, 4]
PY
