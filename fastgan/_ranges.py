"""What a setting may be, in one line: a number in a range, or one of several words."""

from __future__ import annotations

import math
from collections.abc import Sequence
from numbers import Real


def check_range(
    what: str,
    value: float,
    *,
    least: float | None = None,
    above: float = -math.inf,
    most: float | None = None,
    below: float = math.inf,
) -> None:
    """Raises TypeError unless ``value`` is a number, and ValueError unless it is finite and in the range, whose ends
    are included as ``least`` and ``most`` or excluded as ``above`` and ``below``. The message names ``what``, what was
    got and what was expected."""
    if not isinstance(value, Real):
        raise TypeError(f"{what} must be a number, got {value!r}")
    low, high = above if least is None else least, below if most is None else most
    if above < value < below and (least is None or value >= least) and (most is None or value <= most):
        return
    if high < math.inf:
        wanted = f"in {'(' if least is None else '['}{low:g}, {high:g}{')' if most is None else ']'}"
    elif least is not None:
        wanted = f"at least {least:g}"
    else:
        wanted = "positive" if above == 0 else "finite" if above == -math.inf else f"above {above:g}"
    raise ValueError(f"{what} must be {wanted}{'' if math.isfinite(value) else ' and finite'}, got {value}")


def check_choice(what: str, value: object, choices: Sequence[str]) -> None:
    """Raises ValueError unless ``value`` is one of ``choices``."""
    if value not in choices:
        raise ValueError(f"{what} must be one of {', '.join(map(repr, choices))}, got {value!r}")
