#!/usr/bin/env bash
# jax: a scan with a constant carry fails under vmap over an axis sharded on an explicit mesh.
#
# Expected: vmap batches the carry, as it does for any other array. Seen with jax 0.10.2 (and
# 0.12.0.1) on the mesh that jax.make_mesh makes by default, whose axes are explicit: ValueError
# "Resource axis: runs of P('runs',) is not found in mesh: ()", with and without jit. It works where
# the carry is computed from the batched argument, inside jax.set_mesh, and with automatic axes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet jax==0.10.2 jaxlib==0.10.2 numpy==2.4.6
JAX_PLATFORMS=cpu "$folder/venv/bin/python" - <<'PY'
import os

os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=2"
import jax
import jax.numpy as jnp
from jax.sharding import AxisType, NamedSharding, PartitionSpec

print("jax", jax.__version__)
assert jax.__version__ == "0.10.2"
explicit = jax.make_mesh((2,), ("runs",))
automatic = jax.make_mesh((2,), ("runs",), axis_types=(AxisType.Auto,))
assert explicit.axis_types == (AxisType.Explicit,)


def total(a, start):
    return jax.lax.scan(lambda carry, _: (carry + a, None), start, None, length=3)[0]


def constant(a):
    return total(a, jnp.zeros(()))


def computed(a):
    return total(a, 0 * a)


def on(mesh):
    return jax.device_put(jnp.arange(4.0), NamedSharding(mesh, PartitionSpec("runs")))


x = on(explicit)
for name, call in {"vmap": jax.vmap(constant), "jit": jax.jit(jax.vmap(constant))}.items():
    try:
        call(x)
    except ValueError as error:
        print(f"{name}:", error)
        assert "Resource axis: runs" in str(error)
    else:
        raise SystemExit(f"{name} of a constant carry works now")
right = [0.0, 3.0, 6.0, 9.0]
assert jax.vmap(computed)(x).tolist() == right
assert jax.vmap(constant)(on(automatic)).tolist() == right
with jax.set_mesh(explicit):
    assert jax.vmap(constant)(x).tolist() == right
print("a computed carry, automatic axes, jax.set_mesh:", right)
PY
