r"""A 3×3 convolution by Winograd's minimal filtering, F(2×2, 3×3) or F(4×4, 3×3), in plain PyTorch.

A tile of m×m results Y comes of (m + 2)×(m + 2) values d and 3×3 weights g with (m + 2)² multiplications, not 9 m²: 16
for 36, or 36 for 144 (Winograd 1980; Lavin and Gray 2016, arXiv:1509.09308, section 4):

.. math:: U = G g G^\top, \quad V = B^\top d B, \quad M = \sum_{c} U_{kc} \odot V_c, \quad Y_k = A^\top M_k A

The matrices evaluate polynomials at m + 1 points and infinity, and interpolate. m = 2, at 0, 1 and -1 (section 4.1)::

    B' = [ 1  0 -1  0 ]     G = [  1   0   0  ]     A' = [ 1  1  1  0 ]
         [ 0  1  1  0 ]         [ 1/2  1/2 1/2]          [ 0  1 -1 -1 ]
         [ 0 -1  1  0 ]         [ 1/2 -1/2 1/2]
         [ 0  1  0 -1 ]         [  0   0   1  ]

m = 4, at 0, 1, -1, 1/2 and -2: with 1/2 in place of the usual 2 (section 4.3), whose powers are as large as those of
-2, rounding errors are half as large::

    B' = [ 1 -3/2 -2   3/2  1   0 ]   G = [   1      0      0  ]   A' = [ 1  1  1   1   1  0 ]
         [ 0  -1  1/2  5/2  1   0 ]       [  1/3    1/3    1/3 ]        [ 0  1 -1  1/2 -2  0 ]
         [ 0   1 -5/2  1/2  1   0 ]       [ -1/3    1/3   -1/3 ]        [ 0  1  1  1/4  4  0 ]
         [ 0  -2  -1    2   1   0 ]       [-16/15  -8/15  -4/15]        [ 0  1 -1  1/8 -8  1 ]
         [ 0  1/2 -1  -1/2  1   0 ]       [ 1/15   -2/15   4/15]
         [ 0   1 -3/2  -2  3/2  1 ]       [   0      0      1  ]

Tiles of d overlap by two. For each point the sum over channels is a matrix product of [tiles, channels] and [channels,
filters]. Everything is linear in x and in w, so gradients are the adjoints of the same steps, in reverse.
"""

from __future__ import annotations

import torch
from torch import Tensor

# B', G and A' by the side of a tile.
_MATRICES: dict[int, tuple[list[list[float]], ...]] = {
    2: (
        [[1, 0, -1, 0], [0, 1, 1, 0], [0, -1, 1, 0], [0, 1, 0, -1]],
        [[1, 0, 0], [1 / 2, 1 / 2, 1 / 2], [1 / 2, -1 / 2, 1 / 2], [0, 0, 1]],
        [[1, 1, 1, 0], [0, 1, -1, -1]],
    ),
    4: (
        [
            [1, -3 / 2, -2, 3 / 2, 1, 0], [0, -1, 1 / 2, 5 / 2, 1, 0], [0, 1, -5 / 2, 1 / 2, 1, 0],
            [0, -2, -1, 2, 1, 0], [0, 1 / 2, -1, -1 / 2, 1, 0], [0, 1, -3 / 2, -2, 3 / 2, 1],
        ],
        [
            [1, 0, 0], [1 / 3, 1 / 3, 1 / 3], [-1 / 3, 1 / 3, -1 / 3],
            [-16 / 15, -8 / 15, -4 / 15], [1 / 15, -2 / 15, 4 / 15], [0, 0, 1],
        ],
        [[1, 1, 1, 1, 1, 0], [0, 1, -1, 1 / 2, -2, 0], [0, 1, 1, 1 / 4, 4, 0], [0, 1, -1, 1 / 8, -8, 1]],
    ),
}  # fmt: skip


def winograd(x: Tensor, weight: Tensor, bias: Tensor | None = None, tile: int = 4) -> Tensor:
    """conv2d(x, weight, bias) within rounding. x: [N, C, H + 2, W + 2], H and W multiples of the tile's side, 2 or 4;
    weight: [K, C, 3, 3].
    """
    B, G, A = (torch.tensor(matrix, dtype=x.dtype, device=x.device) for matrix in _MATRICES[tile])
    tiles = x.unfold(2, tile + 2, tile).unfold(3, tile + 2, tile)  # [N, C, H / tile, W / tile, tile + 2, tile + 2]
    m = torch.einsum("kcij,nchwij->nkhwij", G @ weight @ G.T, B @ tiles @ B.T)
    y = (A @ m @ A.T).transpose(3, 4)  # [N, K, H / tile, tile, W / tile, tile]
    y = y.reshape(*y.shape[:2], tile * y.size(2), tile * y.size(4))
    return y if bias is None else y + bias[:, None, None]
