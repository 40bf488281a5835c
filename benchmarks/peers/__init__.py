"""What one would write instead of calling alignjax: the same descent, each in its users' way.

Three square layers, white inputs, one target, one start and one learning rate a network. Each peer
is a function ``(job, steps) -> Contender`` that raises :class:`NotMeasured` where it cannot run.
"""

from benchmarks.peers.c_kernel import C_KERNEL, train_in_c
from benchmarks.peers.job import Job, NotMeasured
from benchmarks.peers.numpy_loop import NUMPY, train_in_numpy
from benchmarks.peers.plain_jax import PLAIN, train_in_jax
from benchmarks.peers.pytorch import TORCH, TORCH_COMPILED, train_in_compiled_torch, train_in_torch

__all__ = [
    "C_KERNEL",
    "NUMPY",
    "PEERS",
    "PLAIN",
    "TORCH",
    "TORCH_COMPILED",
    "Job",
    "NotMeasured",
]

PEERS = {
    PLAIN: train_in_jax,
    TORCH: train_in_torch,
    TORCH_COMPILED: train_in_compiled_torch,
    NUMPY: train_in_numpy,
    C_KERNEL: train_in_c,
}
"""Name to peer, in the order of the table."""
