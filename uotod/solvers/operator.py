"""Solvers that look at values, in a compiled graph: a function in, one operator that is taken as a whole out."""

from collections.abc import Callable
from typing import Any

import torch


def operator(schema: str, function: Callable[..., Any], like: Callable[..., Any]) -> Callable[..., Any]:
    """Make a function of tensors and numbers an operator of torch.

    Args:
        schema: its name, arguments and results in the language of torch.
        function: it takes the arguments in their order, and returns a tensor or a tuple of them.
        like: it takes the same, and returns results of the right shape, dtype and device without reading a value.
    """
    name, _, rest = schema.partition("(")
    made = torch.library.custom_op(f"uotod::{name}", function, mutates_args=(), schema=f"({rest}")
    made.register_fake(like)
    return made
