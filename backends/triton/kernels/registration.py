"""How the operators are registered with torch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from qcompile.backends.triton.kernels.arithmetic import INTERPRETED


def operator(name: str) -> Callable[[Callable[..., Any]], Any]:
    """Return a decorator that makes an operator of torch of a function that calls kernels and changes no argument.

    It is a `triton_op`, through which torch.compile and AOTInductor see the kernels. In the interpreter it is a
    `custom_op`, which nothing sees through: a trace would go into kernels that are no kernels there.

    Args:
        name: in the namespace qcompile.
    """
    make = torch.library.custom_op if INTERPRETED.value else torch.library.triton_op
    decorator: Callable[[Callable[..., Any]], Any] = make(f"qcompile::{name}", mutates_args=())
    return decorator
