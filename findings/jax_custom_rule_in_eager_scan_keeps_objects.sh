#!/usr/bin/env bash
# jax: an eager scan of a function with its own derivative rule keeps what its arguments hold.
#
# Expected: once the user lets go of an object that is static data of a pytree, it is freed; a scan
# of plain functions frees it, and so does the same scan under jit. Seen with jax 0.10.2 (and
# 0.12.0.1): called eagerly, lax.scan and fori_loop over a custom_jvp or custom_vjp function keep the
# object, with all arrays that it holds, until jax.clear_caches(): a notebook that makes a new model
# or loss in each cell grows.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet jax==0.10.2 jaxlib==0.10.2 numpy==2.4.6
JAX_PLATFORMS=cpu "$folder/venv/bin/python" - <<'PY'
import gc
import weakref
from dataclasses import dataclass, field

import jax
import jax.numpy as jnp

print("jax", jax.__version__)


class Scale:
    def __init__(self):
        self.data = jnp.full(1000, 2.0)

    def __call__(self, x):
        return x * self.data[0]


@jax.tree_util.register_dataclass
@dataclass
class Model:
    x: jax.Array
    scale: Scale = field(metadata={"static": True})


def plain(model):
    return model.scale(model.x)


own_jvp = jax.custom_jvp(plain)
own_jvp.defjvp(lambda primals, tangents: (plain(*primals), plain(*tangents)))
own_vjp = jax.custom_vjp(plain)
own_vjp.defvjp(lambda m: (plain(m), m), lambda m, g: (Model(m.scale(g), m.scale),))


def is_kept(function, wrap):
    scale = Scale()
    gone = weakref.ref(scale)

    def run(x):
        return jax.lax.scan(lambda x, _: (function(Model(x, scale)), None), x, length=3)[0]

    assert wrap(run)(jnp.float32(1.0)) == 8.0
    del scale, run
    gc.collect()
    return gone() is not None


for name, function in {"plain": plain, "custom_jvp": own_jvp, "custom_vjp": own_vjp}.items():
    kept = {how: is_kept(function, wrap) for how, wrap in {"eager": lambda f: f, "jit": jax.jit}.items()}
    print(f"scan of a {name} function: kept", kept)
    assert kept == {"eager": name != "plain", "jit": False}
PY
