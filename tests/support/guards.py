"""Guards for tests: what operations read of a tensor's values, and how large the tensors are that they return."""

import sys

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

aten = torch.ops.aten
# reading a number, shapes that depend on values, and tensors made from numbers of the host
READS = {
    aten._local_scalar_dense.default,
    aten.nonzero.default,
    aten.masked_select.default,
    aten.lift_fresh.default,
    aten.unique_dim.default,
    aten._unique2.default,
}


def take_gpu_path(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the library take the path of a GPU, which reads no values."""
    for name, module in list(sys.modules.items()):
        if name.startswith("uotod.") and hasattr(module, "reads_values"):
            monkeypatch.setattr(module, "reads_values", lambda tensor, validate: validate)


class NoSynchronisation(TorchDispatchMode):
    """Refuse operations for which a GPU would have to wait."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        indices = args[1] if func in (aten.index.Tensor, aten.index_put.default, aten.index_put_.default) else ()
        by_mask = any(x is not None and x.dtype == torch.bool for x in indices)
        if func in READS or by_mask:
            raise AssertionError(f"{func} reads values on the host")
        return func(*args, **(kwargs or {}))


class LargestTensor(TorchDispatchMode):
    """Keep the number of elements of the largest tensor that an operation takes memory for.

    Views and results in memory that is given are as large as what they lie in, so that all results count.
    """

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for value in result if isinstance(result, (tuple, list)) else [result]:
            if isinstance(value, Tensor) and value.untyped_storage().nbytes():
                held = value.untyped_storage().nbytes() // value.element_size()
                self.elements = max(self.elements, min(value.numel(), held))  # an expanded tensor holds less
        return result
