"""Layer structures: layers that live in a linear subspace of matrices, trained in coefficients.

A structure is a subspace ``S`` of ``(k_out, k_in)`` matrices with a basis ``A_j``, a layer is
``W = sum_j c_j A_j``, and what is trained is the vector of coefficients ``c``. In coordinates
``"orthonormal"`` descent on ``c`` is projected descent on ``W`` (Radhakrishnan et al. 2020,
Theorem 2); in coordinates ``"raw"`` the coefficients are the taps, as deep-learning frameworks
train them, and the rate of tap ``j`` is that of orthonormal coordinates times ``norms[j]**2``.
"""

from alignjax.structures.base import Pattern, Structure
from alignjax.structures.basis import Basis
from alignjax.structures.circulant import Circulant
from alignjax.structures.conv2d import Conv2d
from alignjax.structures.dense import Dense
from alignjax.structures.diagonal import Diagonal
from alignjax.structures.layers import as_structures, check_coefficients, forward, matrices
from alignjax.structures.sparse import Sparse
from alignjax.structures.toeplitz import Toeplitz

__all__ = [
    "Basis",
    "Circulant",
    "Conv2d",
    "Dense",
    "Diagonal",
    "Pattern",
    "Sparse",
    "Structure",
    "Toeplitz",
    "as_structures",
    "check_coefficients",
    "forward",
    "matrices",
]
