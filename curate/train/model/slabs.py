"""Separate memory for tensors that stay until the backward pass or the end of a step (CPU).

Such tensors live long, while others are allocated and freed between them. On one heap the
long-lived tensors end up scattered among the short-lived ones, and glibc can reuse little of the
space between: PyTorch asks for aligned blocks, and a freed block is too small for the next tensor
of the same size. An update then occupied two to three times the memory in use.

Here long-lived tensors are copied into slabs, one after the other, and a slab returns to the system
when the last tensor in it is freed. The copy costs little next to the matrix product that made the
tensor. GPUs have an allocator that does not need this.
"""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

SLAB = 40 << 20  # bytes: glibc maps every block above 32 MiB separately
ALIGNMENT = 64  # bytes, as PyTorch aligns its own tensors


class Slabs:
    """The slab that one policy is filling; full ones are kept alive by the tensors in them."""

    def __init__(self) -> None:
        self._storage: torch.UntypedStorage | None = None
        self._used = 0

    def copy_to_slab(self, x: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        """Return `x` as a contiguous tensor in a slab, without gradient.

        Returns `x` itself (detached, in `dtype`) on a GPU, or if it does not fit into a slab.
        """
        dtype = dtype or x.dtype
        if x.device.type != "cpu" or x.numel() * dtype.itemsize > SLAB:
            return x.detach().to(dtype)
        size = -(-x.numel() * dtype.itemsize // ALIGNMENT) * ALIGNMENT
        if self._storage is None or self._used + size > self._storage.nbytes():
            self._storage, self._used = torch.UntypedStorage(SLAB), 0
        offset = self._used // dtype.itemsize
        stride = torch.empty(x.shape, device="meta").stride()
        # `set_` and not a view: autograd would look for the base of a view.
        place = torch.empty(0, dtype=dtype).set_(self._storage, offset, x.shape, stride)
        self._used += size
        return place.copy_(x.detach())

    def gradient(self, product: Tensor, weight: Tensor) -> Tensor:
        """Return `product` as the gradient of `weight`: the first of a step stays until its end."""
        first = weight.is_leaf and weight.grad is None
        return self.copy_to_slab(product, weight.dtype) if first else product.to(weight.dtype)

    def start_new(self) -> None:
        """Leave the current slab to the tensors in it; the next copy begins another."""
        self._storage = None


def trim_heap(device: torch.device) -> None:
    """Return freed CPU memory to the system; call it after a micro-batch and after a step.

    glibc keeps it otherwise, in holes between long-lived tensors (gradients, AdamW's moments) that
    the next tensors do not fit into: half a GiB for a model of 135 million parameters.
    """
    if device.type != "cpu":
        return
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
