"""Watch alignment in a training loop of your own.

`alignjax.metrics.SpectralTracker` follows ||W||_2 / ||W||_F of every dense layer of any model: 1
for a layer of rank 1, about 2 / sqrt(k) for a k x k layer of independent random entries. It costs
a few products of a matrix and a vector a call. The three lines that watch are marked; the rest is
a classifier in Equinox and Optax as one writes it anyway. The same three lines do in Flax, or with
parameters in a dictionary.

    python docs/examples/watch_alignment.py

The labels depend on one direction of the data, and from a small start every layer is soon close to
rank 1, though this network is not linear. (Of linear ones, Ji & Telgarsky 2019 prove that all
layers reach rank 1 as the logistic loss goes to zero.)
"""

import equinox as eqx
import jax
import optax

from alignjax.metrics import SpectralTracker


def loss(model: eqx.nn.MLP, x: jax.Array, y: jax.Array) -> jax.Array:
    """The mean logistic loss."""
    return optax.sigmoid_binary_cross_entropy(jax.vmap(model)(x), y).mean()


def main(steps: int = 500) -> list[dict[str, float]]:
    """Train, print the layers' ratios on the way, and return them."""
    data_key, model_key = jax.random.split(jax.random.key(0))
    x = jax.random.normal(data_key, (256, 20))
    y = (x[:, 0] > 0).astype(x.dtype)
    model = eqx.nn.MLP(20, "scalar", width_size=64, depth=2, key=model_key)
    model = jax.tree.map(lambda leaf: 0.3 * leaf if eqx.is_array(leaf) else leaf, model)
    optimizer = optax.sgd(0.5)
    state = optimizer.init(eqx.filter(model, eqx.is_array))

    @eqx.filter_jit
    def train_step(model, state, tracker):
        value, gradient = eqx.filter_value_and_grad(loss)(model, x, y)
        updates, state = optimizer.update(gradient, state)
        model = eqx.apply_updates(model, updates)
        ratios, tracker = tracker.update(model)  # (2) the ratios as they are now
        return model, state, tracker, value, ratios

    tracker = SpectralTracker.init(model)  # (1) follows every matrix of the model
    watched = []
    for step in range(1, steps + 1):
        model, state, tracker, value, ratios = train_step(model, state, tracker)
        if step in (1, steps // 5, steps):
            watched.append({path: float(ratio) for path, ratio in ratios.items()})  # (3)
            told = ", ".join(f"{path} {ratio:.2f}" for path, ratio in watched[-1].items())
            print(f"step {step}: loss {float(value):.4f}, {told}")
    return watched


if __name__ == "__main__":
    main()
