"""A framework trains the same networks the same way. Needs the extra `peers`."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import alignjax as aj
from alignjax.structures import Conv2d

torch = pytest.importorskip("torch", reason="PyTorch is in the extra `peers`")

SIZE, DEPTH, STEPS, RATE = 12, 3, 200, 2e-3


def framework_run(images, starts, padding):
    """Full-batch SGD on a stack of Conv2d modules; the taps after every step, ``(steps, d, 9)``."""
    layers = torch.nn.Sequential(
        *(
            torch.nn.Conv2d(1, 1, 3, padding=1, padding_mode=padding, bias=False).double()
            for _ in starts
        )
    )
    with torch.no_grad():
        for layer, taps in zip(layers, starts, strict=True):
            layer.weight.copy_(torch.tensor(np.array(taps)).reshape(1, 1, 3, 3))
    batch = torch.tensor(np.array(images)).reshape(-1, 1, SIZE, SIZE)
    optimizer = torch.optim.SGD(layers.parameters(), lr=RATE)
    path = []
    for _ in range(STEPS):
        optimizer.zero_grad()
        loss = 0.5 * (layers(batch) - batch).square().sum() / len(batch)
        loss.backward()
        optimizer.step()
        path.append([layer.weight.detach().numpy().reshape(9).copy() for layer in layers])
    return np.array(path), float(loss.detach())


@pytest.mark.parametrize(("padding", "mode"), [("zeros", "zeros"), ("circular", "circular")])
@pytest.mark.parametrize("count", [1, 5])
def test_raw_taps_train_as_a_framework_trains_them(padding, mode, count):
    image_key, start_key = jax.random.split(jax.random.key(0))
    images = 0.3 * jax.random.normal(image_key, (count, SIZE * SIZE))
    starts = tuple(taps.at[4].add(0.5) for taps in 0.2 * jax.random.normal(start_key, (DEPTH, 9)))
    expected, loss = framework_run(images, starts, mode)
    structure = Conv2d(SIZE, 3, padding=padding, coordinates="raw")
    run = aj.gradient_descent(
        aj.autoencoding(images),
        starts,
        RATE,
        steps=STEPS,
        save_at=range(1, STEPS + 1),
        observe=jnp.stack,
        structure=structure,
    )
    assert run.status == aj.Status.COMPLETED
    np.testing.assert_allclose(run.observations, expected, rtol=0, atol=1e-10)
    # Both have learned something, or the comparison would say little.
    start_risk = aj.risk(aj.autoencoding(images), aj.structures.matrices(structure, starts))
    assert loss < 0.9 * start_risk
