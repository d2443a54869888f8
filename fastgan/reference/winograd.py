r"""A 3×3 convolution by Winograd's minimal filtering F(2×2, 3×3), in plain PyTorch.

A tile of 2×2 results Y = A'M A comes of 4×4 values d and 3×3 weights g with 16 multiplications, not 36 (Winograd 1980;
Lavin and Gray 2016, arXiv:1509.09308, section 4.1):

.. math:: U = G g G^\top, \quad V = B^\top d B, \quad M = \sum_{c} U_{kc} \odot V_c, \quad Y_k = A^\top M_k A

    B' = [ 1  0 -1  0 ]     G = [  1   0   0  ]     A' = [ 1  1  1  0 ]
         [ 0  1  1  0 ]         [ 1/2  1/2 1/2]          [ 0  1 -1 -1 ]
         [ 0 -1  1  0 ]         [ 1/2 -1/2 1/2]
         [ 0  1  0 -1 ]         [  0   0   1  ]

Tiles of d overlap by two. For each of the 16 places the sum over channels is a matrix product of [tiles, channels] and
[channels, filters]. Everything is linear in x and in w, so gradients are the adjoints of the same steps, in reverse.
"""

from __future__ import annotations

import torch
from torch import Tensor

_B = torch.tensor([[1.0, 0, -1, 0], [0, 1, 1, 0], [0, -1, 1, 0], [0, 1, 0, -1]])  # B'
_G = torch.tensor([[1.0, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]])
_A = torch.tensor([[1.0, 1, 1, 0], [0, 1, -1, -1]])  # A'


def winograd(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """conv2d(x, weight, bias) within rounding. x: [N, C, H + 2, W + 2], H and W even; weight: [K, C, 3, 3]."""
    B, G, A = (matrix.to(x.device, x.dtype) for matrix in (_B, _G, _A))
    tiles = x.unfold(2, 4, 2).unfold(3, 4, 2)  # [N, C, H / 2, W / 2, 4, 4]
    m = torch.einsum("kcij,nchwij->nkhwij", G @ weight @ G.T, B @ tiles @ B.T)
    y = (A @ m @ A.T).transpose(3, 4)  # [N, K, H / 2, 2, W / 2, 2]
    y = y.reshape(*y.shape[:2], 2 * y.size(2), 2 * y.size(4))
    return y if bias is None else y + bias[:, None, None]
