"""The same layers with less to remember: what the backward pass can compute again cheaply is not kept for it.

transformers keeps, for every layer, the normalised states beside the states and four tensors of the width of the MLP;
under autocast also a bf16 copy of each weight, and one of the same input for each of q, k and v. Here a layer keeps its
input once, the gate and the up projection; weights are cast again when they are needed, and states that a norm gave are
normalised again. On a CPU values are the same bit for bit; of a gradient only the order of rounding differs. Modules of
other kinds are left as they are.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from functools import cache
from itertools import count
from types import MethodType
from typing import TYPE_CHECKING, Any

from curate.train.model.slabs import gradient, keep

if TYPE_CHECKING:
    import torch
    from torch import Tensor


NORMED = "curate_normed"  # on the states a norm gave: the number of the call, epsilon, its input, scale and weight


class _LastCast:
    """The last input that was cast, since q, k and v (gate and up) are given the same one."""

    source: Any = None
    version = -1
    result: Any = None

    def __call__(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        if x.dtype == dtype:
            return x
        same = self.source is not None and self.source() is x and self.version == x._version
        if not same or self.result.dtype != dtype:
            self.source, self.version, self.result = weakref.ref(x), x._version, x.to(dtype)
        result: Tensor = self.result
        return result


_cast = _LastCast()


class _LastNormed:
    """The last states that the backward pass normalised again, for the same reason."""

    number: Any = None
    result: Any = None

    def __call__(self, norm: tuple[int, float], kept: list[Any], dtype: torch.dtype) -> Tensor:
        number, epsilon = norm
        if number != self.number or self.result.dtype != dtype:
            self.number, self.result = number, _normed(kept[0], kept[1], kept[2], epsilon).to(dtype)
        result: Tensor = self.result
        return result


_again = _LastNormed()
_numbers = count()


def _normed(x: Tensor, scale: Tensor | None, weight: Tensor, epsilon: float) -> Tensor:
    import torch

    if scale is None:
        return torch.nn.functional.rms_norm(x, weight.shape, weight, epsilon)
    return weight * (x.to(scale.dtype) * scale).to(x.dtype)


@cache
def _functions() -> tuple[Any, Any, Any]:
    import torch

    class Linear(torch.autograd.Function):
        """x `[..., D]` and weight `[E, D]` to `[..., E]`, multiplied in `dtype`.

        `normed`: where x comes from a norm, what `_again` takes.
        """

        @staticmethod
        def forward(
            ctx: Any,
            x: Tensor,
            weight: Tensor,
            bias: Tensor | None,
            dtype: torch.dtype,
            normed: tuple[Any, ...] = (),
        ) -> Tensor:
            low = _cast(x, dtype)
            ctx.norm = normed[:2]
            kept = (normed[2:] or (low,)) if ctx.needs_input_grad[1] else (None,)
            ctx.save_for_backward(weight, *kept)
            ctx.dtypes = x.dtype, dtype
            return torch.nn.functional.linear(
                low, weight.to(dtype), None if bias is None else bias.to(dtype)
            )

        @staticmethod
        def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
            weight, *kept = ctx.saved_tensors
            (given, dtype), grad = ctx.dtypes, grads[0]
            needs_x, needs_weight, needs_bias, *_ = ctx.needs_input_grad
            dx = (grad @ weight.to(dtype)).to(given) if needs_x else None
            flat = grad.reshape(-1, grad.shape[-1])
            dw = None
            if needs_weight:
                low: Any = _again(ctx.norm, kept, dtype) if ctx.norm else kept[0]
                dw = gradient(flat.t() @ low.reshape(-1, low.shape[-1]), weight)
            return dx, dw, flat.sum(0).to(weight.dtype) if needs_bias else None, None, None

    class Gated(torch.autograd.Function):
        """(silu(gate) up) weight^T: gate and up `[..., F]`, weight `[D, F]` to `[..., D]`. `apart`: see keep.py."""

        @staticmethod
        def forward(
            ctx: Any, gate: Tensor, up: Tensor, weight: Tensor, apart: bool = False
        ) -> Tensor:
            ctx.save_for_backward(*((keep(gate), keep(up)) if apart else (gate, up)), weight)
            return (torch.nn.functional.silu(gate) * up) @ weight.to(gate.dtype).t()

        @staticmethod
        def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
            gate, up, weight = ctx.saved_tensors
            grad = grads[0]
            active = torch.nn.functional.silu(gate)
            dw = None
            if ctx.needs_input_grad[2]:
                inner = (active * up).reshape(-1, up.shape[-1])
                dw = gradient(grad.reshape(-1, grad.shape[-1]).t() @ inner, weight)
            d_inner = grad @ weight.to(gate.dtype)
            return torch.ops.aten.silu_backward(d_inner * up, gate), d_inner.mul_(active), dw, None

    class Norm(torch.autograd.Function):
        """weight x / rms(x), over the last dimension, in at least fp32; and 1 / rms(x), without gradient.

        `kept`: x for the backward pass, where it lies apart.
        """

        @staticmethod
        def forward(
            ctx: Any, x: Tensor, weight: Tensor, epsilon: float, kept: Tensor | None = None
        ) -> tuple[Tensor, Tensor]:
            wide = x.to(torch.promote_types(x.dtype, torch.float32))
            scale = torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + epsilon)
            ctx.save_for_backward(x if kept is None else kept, scale, weight)
            ctx.mark_non_differentiable(scale)
            return weight * (wide * scale).to(x.dtype), scale

        @staticmethod
        def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
            x, scale, weight = ctx.saved_tensors
            unit = x.to(scale.dtype) * scale
            grad = grads[0].to(scale.dtype)
            dw = None
            if ctx.needs_input_grad[1]:
                dw = (grad * unit).reshape(-1, unit.shape[-1]).sum(0).to(weight.dtype)
            inner = grad * weight
            # d/dx of x r(x): r (g - u mean(g u)) with u = x r
            dx = (inner - unit.mul_((inner * unit).mean(-1, keepdim=True))).mul_(scale)
            return dx.to(x.dtype), dw, None, None

    return Linear, Gated, Norm


def make_lean(model: Any, dtype: torch.dtype | None) -> None:
    """Replace the forward pass of the layers that are known; `dtype` is that of autocast, None without."""
    import torch

    head = model.get_output_embeddings()
    for module in model.modules():
        if is_gated(module):
            _replace(module, _gated_forward)
        elif is_norm(module):
            _replace(module, _norm_forward)
        elif type(module) is torch.nn.Linear and module is not head:
            _replace(module, _linear_forward, dtype)


def _replace(module: Any, forward: Callable[..., Tensor], dtype: torch.dtype | None = None) -> None:
    module.lean_dtype = dtype
    module.forward = MethodType(forward, module)


def is_gated(module: Any) -> bool:
    """An MLP of three matrices with SiLU, none of them adapted, told by what it computes: some scale the gate."""
    import torch

    parts = [getattr(module, name, None) for name in ("gate_proj", "up_proj", "down_proj")]
    if not all(type(part) is torch.nn.Linear and part.bias is None for part in parts):
        return False
    if type(getattr(module, "act_fn", None)).__name__ not in ("SiLU", "SiLUActivation"):
        return False
    with torch.no_grad():
        x = _probe(module.gate_proj.weight)
        plain, lean = module(x), _gated_forward(module, x)
        return bool(plain.shape == lean.shape and torch.allclose(plain, lean))


def is_norm(module: Any) -> bool:
    """The RMSNorm of Llama and all that copied it, told by what it computes: some add one to the weight, some round
    after it instead of before."""
    import torch

    if not (type(module).__name__.endswith("RMSNorm") and hasattr(module, "variance_epsilon")):
        return False
    if getattr(module, "weight", None) is None or getattr(module, "bias", None) is not None:
        return False
    with torch.no_grad():
        for dtype in (torch.float32, torch.bfloat16):
            x = _probe(module.weight).to(dtype)
            plain, lean = (
                module(x),
                _functions()[2].apply(x, module.weight, module.variance_epsilon)[0],
            )
            if plain.dtype != lean.dtype or not torch.equal(plain, lean):
                return False
    return True


def _probe(weight: Tensor) -> Tensor:
    """`[1, D]` unlike numbers, where `weight` is `[..., D]`."""
    import torch

    return torch.linspace(-2, 3, weight.shape[-1], dtype=weight.dtype, device=weight.device)[None]


def _linear_forward(self: Any, x: Tensor) -> Tensor:
    import torch

    normed = getattr(x, NORMED, ())
    if torch.is_autocast_enabled(x.device.type):
        dtype = self.lean_dtype
    else:  # a product that rounds differently, or another dtype than was asked for, would be a surprise here
        dtype = x.dtype if normed and x.dtype == self.weight.dtype else None
    if dtype is None:
        return torch.nn.functional.linear(x, self.weight, self.bias)
    with torch.autocast(x.device.type, enabled=False):
        result: Tensor = _functions()[0].apply(x, self.weight, self.bias, dtype, normed)
    return result


def _gated_forward(self: Any, x: Tensor) -> Tensor:
    import torch

    gate, up = self.gate_proj(x), self.up_proj(x)
    with torch.autocast(x.device.type, enabled=False):
        result: Tensor = _functions()[1].apply(
            gate, up, self.down_proj.weight, torch.is_grad_enabled()
        )
    return result


def _norm_forward(self: Any, x: Tensor) -> Tensor:
    import torch

    scale: Any = None
    result: Tensor
    kept = keep(x) if torch.is_grad_enabled() else x.detach()
    if _one_kernel(x) and x.dtype == self.weight.dtype == torch.float32:
        result = torch.nn.functional.rms_norm(
            x, self.weight.shape, self.weight, self.variance_epsilon
        )
    else:
        result, scale = _functions()[2].apply(x, self.weight, self.variance_epsilon, kept)
    setattr(result, NORMED, (next(_numbers), self.variance_epsilon, kept, scale, self.weight))
    return result


def _one_kernel(x: Tensor) -> bool:
    """Whether PyTorch has RMSNorm as one kernel, which keeps its input only. On a GPU a small model waits for every
    kernel that is launched."""
    return x.is_cuda
