"""Room of its own for what stays until the backward pass or the end of a step, on a CPU.

Such tensors live long, and between them others are made and freed at once. In one heap the long-lived ones end up
scattered over the room of the short-lived, of which glibc can then use little again: PyTorch asks for aligned pieces,
and a piece that was freed is too small for the next of the same size. An update held twice to three times what was
alive. Here they are copied into slabs, one after the other; a slab goes back to the system when the last of its tensors
is gone. A copy costs little beside the product that made the tensor. GPUs have an allocator that needs none of this.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from torch import Tensor

SLAB = 40 << 20  # bytes: glibc gives all above 32 MiB a mapping of its own
ALIGNED = 64


class _Slab:
    """The slab that is being filled."""

    storage: Any = None
    used = 0

    def copy(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        import torch

        size = -(-x.numel() * dtype.itemsize // ALIGNED) * ALIGNED
        if self.storage is None or self.used + size > self.storage.nbytes():
            self.storage, self.used = torch.UntypedStorage(SLAB), 0
        # Not a view: autograd would ask what it is a view of.
        at, stride = self.used // dtype.itemsize, torch.empty(x.shape, device="meta").stride()
        room = torch.empty(0, dtype=dtype).set_(self.storage, at, x.shape, stride)
        self.used += size
        return room.copy_(x)


_slab = _Slab()


def keep(x: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """The same values without gradient, contiguous and out of the way; `x` itself where that makes no difference."""
    dtype = dtype or x.dtype
    if x.device.type != "cpu" or x.numel() * dtype.itemsize > SLAB:
        return x.detach().to(dtype)
    return _slab.copy(x.detach(), dtype)


def gradient(product: Tensor, weight: Tensor) -> Tensor:
    """`product` as the gradient of `weight`. The first one of a step stays until its end."""
    first = weight.is_leaf and weight.grad is None
    return keep(product, weight.dtype) if first else product.to(weight.dtype)


def give_back(device: torch.device) -> None:
    """Freed memory back to the system, after a micro-batch and after a step.

    glibc keeps it, in holes between what stays (gradients; the moments of AdamW, made amid the first step's leavings)
    that the next tensors do not fit: half a GiB for a model of 135 million parameters.
    """
    import ctypes

    if device.type != "cpu":
        return
    _slab.storage = None  # what is alive in it stays, and what comes next begins another
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
