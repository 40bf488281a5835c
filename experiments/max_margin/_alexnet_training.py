"""Train AlexNet, watch its dense layers, and go on where a training stopped."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array

from alignjax.datasets import Images
from alignjax.metrics import SpectralTracker
from experiments.max_margin import _alexnet_checkpoint as checkpoints
from experiments.max_margin._alexnet import DTYPE, AlexNet, dense_weights, risk, with_equal_norms

Start = Literal["default", "equal norms"]
STARTS: tuple[Start, ...] = ("default", "equal norms")
# raised when the same settings come to mean another training
FORMAT = 2
EVALUATION_BATCH = 500
# the start is random and its singular values lie close; later vectors are nearly right already
FIRST_ITERATIONS = 100
ITERATIONS = 10


@dataclass(frozen=True)
class Settings:
    """What a training depends on besides its images; the paper tells only the epochs.

    Attributes:
        start: PyTorch's default, or dense weights that are Gaussian and of equal Frobenius norms.
        seed: of the start and of the order of the images.
        epochs: passes over the images.
        batch_size: images a step; the rest of an epoch that fills no batch is left out.
        learning_rate: of stochastic gradient descent.
        momentum: of the same.
        first_epochs: how many epochs begin with another learning rate.
        first_learning_rate: theirs.
    """

    start: Start
    seed: int
    epochs: int
    batch_size: int
    learning_rate: float = 0.01
    momentum: float = 0.9
    first_epochs: int = 0
    first_learning_rate: float = 0.0

    def learning_rate_of(self, epoch: int) -> float:
        """That of an epoch, counted from 0."""
        return self.first_learning_rate if epoch < self.first_epochs else self.learning_rate


@dataclass(frozen=True)
class Data:
    """Standardized images on the device, `(n, 3, 32, 32)`, their labels, and a digest of both."""

    images: Array
    labels: Array
    digest: str

    @classmethod
    def of(cls, images: Images) -> Data:
        """Each colour minus its mean, over its standard deviation, over all pixels and images."""
        pixels = images.images.astype(np.float32)
        mean = pixels.mean(axis=(0, 2, 3), keepdims=True, dtype=np.float64)
        deviation = pixels.std(axis=(0, 2, 3), keepdims=True, dtype=np.float64)
        pixels = (pixels - mean.astype(np.float32)) / deviation.astype(np.float32)
        digest = hashlib.sha256(images.images.tobytes() + images.labels.tobytes()).hexdigest()
        return cls(jnp.asarray(pixels), jnp.asarray(images.labels.astype(np.int32)), digest)


class State(eqx.Module):
    """All that the rest of a training depends on, and what was seen so far.

    Attributes:
        network: the weights.
        optimizer: momenta.
        tracker: vectors of the dense layers' power iterations.
        epoch: epochs done, `()`.
        risks: mean cross-entropy over all images at the start and after each epoch,
            `(epochs + 1,)`; NaN where still to come.
        ratios: `||W_i||_2 / ||W_i||_F`, `(epochs + 1, 3)`.
        norms: `||W_i||_F`, `(epochs + 1, 3)`.
    """

    network: AlexNet
    optimizer: Any
    tracker: SpectralTracker
    epoch: np.ndarray
    risks: np.ndarray
    ratios: np.ndarray
    norms: np.ndarray


def untracked(epochs: Iterable[int]) -> Iterator[int]:
    """Epochs without a progress bar."""
    return iter(epochs)


def train(
    settings: Settings,
    data: Data,
    *,
    folder: Path,
    track: Callable[[Iterable[int]], Iterable[int]] = untracked,
    make: Callable[[Array], AlexNet] = AlexNet,
) -> tuple[State, Path]:
    """Train, or go on from the checkpoint in ``folder``, and save one after each epoch.

    A training that was stopped and resumed ends with the same bits as one that was not, on a CPU;
    on a GPU where XLA is told to be deterministic (``--xla_gpu_deterministic_ops=true``).

    Args:
        settings: what is trained how.
        data: the images.
        folder: of the checkpoint, made where it is missing.
        track: wraps the loop over epochs in a progress bar.
        make: the network from a key.

    Returns:
        The state after the last epoch, and its checkpoint.

    Raises:
        ValueError: a batch is larger than the data.
        CheckpointError: the checkpoint in the folder is damaged.
        MemoryError: the accelerator has too little memory for a step.
        FloatingPointError: the risk is no longer finite.
    """
    if settings.batch_size > len(data.labels):
        raise ValueError(
            f"batch_size: expected at most the {len(data.labels)} images, got {settings.batch_size}"
        )
    state = start(settings, make)
    require_memory(settings, data, state)
    config = fingerprint(settings, data, state)
    path = checkpoints.path_of(folder, settings.start.replace(" ", "_"), config)
    resumed = checkpoints.load(path, config, state)
    state = observe(state, data, FIRST_ITERATIONS) if resumed is None else resumed
    for epoch in track(range(int(state.epoch), settings.epochs)):
        state = observe(run_epoch(state, settings, data, epoch), data, ITERATIONS)
        if not np.isfinite(state.risks[epoch + 1]):
            raise FloatingPointError(f"the risk diverged in epoch {epoch + 1} of {settings}")
        checkpoints.save(path, config, state)
    return state, path


def start(settings: Settings, make: Callable[[Array], AlexNet] = AlexNet) -> State:
    """The state before the first epoch."""
    network_key, dense_key = jax.random.split(jax.random.key(settings.seed))
    network = make(network_key)
    if settings.start == "equal norms":
        network = with_equal_norms(network, dense_key)
    layers = len(network.dense)
    return State(
        network,
        optimizer_of(settings).init(eqx.filter(network, eqx.is_array)),
        SpectralTracker.init(dense_weights(network)),
        np.array(-1),
        np.full(settings.epochs + 1, np.nan),
        np.full((settings.epochs + 1, layers), np.nan),
        np.full((settings.epochs + 1, layers), np.nan),
    )


def fingerprint(settings: Settings, data: Data, state: State) -> dict[str, Any]:
    """What a checkpoint must agree with; other software or hardware would not go on bit for bit."""
    device = jax.devices()[0]
    return {
        "format": FORMAT,
        **asdict(settings),
        "images": len(data.labels),
        "data": data.digest,
        "shapes": [list(x.shape) for x in jax.tree.leaves(eqx.filter(state.network, eqx.is_array))],
        "jax": jax.__version__,
        "device": device.device_kind,
    }


def optimizer_of(settings: Settings) -> optax.GradientTransformation:
    """What stochastic gradient descent with momentum multiplies by minus its learning rate."""
    return optax.trace(decay=settings.momentum)


def run_epoch(state: State, settings: Settings, data: Data, epoch: int) -> State:
    """One pass in an order that depends on the seed and the epoch alone."""
    key = jax.random.fold_in(jax.random.key(settings.seed), epoch)
    order = np.asarray(jax.random.permutation(key, len(data.labels)))
    network, optimizer = state.network, state.optimizer
    size, rate = settings.batch_size, settings.learning_rate_of(epoch)
    for first in range(0, len(order) - size + 1, size):
        batch = jnp.asarray(order[first : first + size])
        network, optimizer = take_step(
            network, optimizer, data.images, data.labels, batch, rate, settings=settings
        )
    return eqx.tree_at(lambda s: (s.network, s.optimizer), state, (network, optimizer))


@partial(jax.jit, static_argnames="settings")
def take_step(
    network: AlexNet,
    optimizer: Any,
    images: Array,
    labels: Array,
    batch: Array,
    learning_rate: Array | float,
    *,
    settings: Settings,
) -> tuple[AlexNet, Any]:
    """One step on the images at the positions ``batch``."""
    gradient = jax.grad(risk)(network, images[batch], labels[batch])
    velocity, optimizer = optimizer_of(settings).update(gradient, optimizer)
    rate = jnp.asarray(learning_rate, DTYPE)
    return eqx.apply_updates(network, jax.tree.map(lambda v: -rate * v, velocity)), optimizer


_risk = jax.jit(risk)
_track = jax.jit(SpectralTracker.update, static_argnames="iterations")


def observe(state: State, data: Data, iterations: int) -> State:
    """Risk over all images, ratios and norms of the dense layers; the epoch is then done."""
    epoch = int(state.epoch) + 1
    total, count = 0.0, len(data.labels)
    for first in range(0, count, EVALUATION_BATCH):
        part = slice(first, first + EVALUATION_BATCH)
        labels = data.labels[part]
        total += float(_risk(state.network, data.images[part], labels)) * len(labels)
    weights = dense_weights(state.network)
    by_path, tracker = _track(state.tracker, weights, iterations=iterations)
    risks, ratios, norms = state.risks.copy(), state.ratios.copy(), state.norms.copy()
    risks[epoch] = total / count
    ratios[epoch] = [float(value) for value in by_path.values()]
    norms[epoch] = [float(jnp.linalg.norm(w)) for w in weights]
    return State(state.network, state.optimizer, tracker, np.array(epoch), risks, ratios, norms)


def require_memory(settings: Settings, data: Data, state: State) -> None:
    """Refuse to begin where a step or an evaluation does not fit the accelerator.

    Raises:
        MemoryError: says how much is needed and how much is free.
    """
    statistics = jax.devices()[0].memory_stats()
    # a CPU has none
    if not statistics or "bytes_limit" not in statistics:
        return
    free = statistics["bytes_limit"] - statistics.get("bytes_in_use", 0)
    batch = jnp.zeros(settings.batch_size, jnp.int32)
    rate = settings.learning_rate_of(0)
    step = take_step.lower(
        state.network, state.optimizer, data.images, data.labels, batch, rate, settings=settings
    )
    check_memory(needed_beyond_arguments(step.compile()), free)


def needed_beyond_arguments(compiled: Any) -> int:
    """Bytes that a compiled program takes besides its arguments, which are on the device."""
    analysis = compiled.memory_analysis()
    return analysis.temp_size_in_bytes + analysis.output_size_in_bytes


def check_memory(needed: int, free: int) -> None:
    """Refuse a step that does not fit.

    Raises:
        MemoryError: says how much is needed and how much is free.
    """
    if needed > free:
        raise MemoryError(
            f"a step needs {needed / 1e9:.2f} GB of the accelerator's memory, and "
            f"{free / 1e9:.2f} GB are free: take a smaller batch, or a smaller scale"
        )
