r"""Instance norm + affine + residual + activation + reflection padding, its backward and double backward, in Triton.

The formulas are in :mod:`fastgan.reference.instance_norm`. Every kernel works on tiles [planes, elements]; a plane is
one channel of one sample. A tile is contiguous along a plane in NCHW, and takes whole 128-bit rows of channels in
channels_last: one source serves both.

**Regimes**, chosen by :func:`setting` from bucketed sizes, and the bytes they move, with B those of x, and B' those of
the padded tensor (:func:`traffic` has them as numbers):

=================  ============================================  =======================  ============================
                   where                                         forward                  backward; double backward
=================  ============================================  =======================  ============================
resident           a plane's elements fit in one program's       B + B'                   2B + B'; 3B + 2B'
                   registers: read once, written once
resident, grouped  many small planes share a program             the same                 the same
looped             many large planes: a program reads each       B + B' and what the      the same, and the second
                   twice, the second time (but for the double    L2 does not hold at      reads
                   backward) from its end, which the L2 holds    the second read
split              a plane is cut in `splits` pieces: one        2B + B'                  3B + 2B'; 5B + 3B'
                   launch reduces each, a second merges the
                   pieces' sums and reads the plane again, from
                   its end, which the L2 still holds
=================  ============================================  =======================  ============================

A residual adds B to each (2B where a split kernel must find the activation's cut twice), its gradient B. With
padding, forward and the double backward write the padded tensor by gathering from the plane again: those reads hit
the cache that the reduction has just filled, and are not counted. The backward of padding, which adds each border
element's copies to it, is a gather too: element (h, w) reads its up to nine copies; masked-off reads move nothing.

Statistics are float32: two passes over registers in a resident program; per-lane Welford updates in a split one,
merged by Chan's formula across lanes and then across pieces. The merge is done by every program of the second launch
in the same order, so results are deterministic and there are no atomics. Offsets across planes are 64-bit.

**Where to look.** ``launch_table`` chooses regime and tile; ``launchers`` plans, allocates and launches. The kernels
are in ``forward_kernels``, ``backward_kernels`` and ``double_backward_kernels``: of each operator the resident one, and
the two of the split regime, of which the second alone serves the looped one. They are made of ``tiles`` (where
elements lie), ``padding`` (reflection, forth and back) and ``terms`` (what both derivatives read). ``cases`` are the
calls that are compiled ahead of time.
"""

from __future__ import annotations

from fastgan.kernels.dispatch import Call
from fastgan.kernels.triton._launch import unsupported_device, unsupported_dtype
from fastgan.kernels.triton.instance_norm.cases import aot_cases, example
from fastgan.kernels.triton.instance_norm.launch_table import Setting, setting, traffic
from fastgan.kernels.triton.instance_norm.launchers import backward, double_backward, forward, over_samples

__all__ = [
    "Setting",
    "aot_cases",
    "backward",
    "double_backward",
    "example",
    "forward",
    "over_samples",
    "setting",
    "supports",
    "traffic",
]


def supports(call: Call) -> str | None:
    """None when these kernels serve the call, else the reason why not."""
    return unsupported_device(call) or unsupported_dtype(call)
