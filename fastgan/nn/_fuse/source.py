"""The source of Python functions, as syntax trees."""

from __future__ import annotations

import ast
import functools
import inspect
import os
import sysconfig
from types import CodeType

import torch

_STANDARD_LIBRARY = sysconfig.get_path("stdlib") + os.sep
_TORCH = os.path.dirname(torch.__file__) + os.sep


def is_users(code: CodeType) -> bool:
    """Whether ``code`` is neither PyTorch's nor the standard library's."""
    path = code.co_filename
    of_python = path.startswith("<frozen") or (path.startswith(_STANDARD_LIBRARY) and "-packages" not in path)
    return not of_python and not path.startswith(_TORCH)


@functools.lru_cache(maxsize=4096)
def tree_of(code: CodeType) -> ast.Module | None:
    """The statement that defines ``code``; None if there is no source, or only a part of that statement."""
    try:
        source = inspect.getsource(code)
        return ast.parse("if True:\n" + source if source[0].isspace() else source)
    except (OSError, TypeError, SyntaxError, IndexError):
        return None
