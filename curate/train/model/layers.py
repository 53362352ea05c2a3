"""Layers that keep less for the backward pass.

transformers keeps, for every layer, the normalised states next to the states and four tensors as
wide as the MLP; under autocast also a bf16 copy of each weight, and three copies of the input of q,
k and v. Here a layer keeps its input once, the gate and the up projection. Weights are cast again
when they are needed, and the output of a norm is normalised again. On a CPU values are the same bit
for bit; gradients differ only in the order of rounding. Modules that compute anything else are not
replaced.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from itertools import count
from types import MethodType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from curate.train.model.slabs import Slabs

# Attribute on the output of a norm, a `Normed`, with which a linear layer can normalise again.
NORMED = "curate_normed"


class Normed(NamedTuple):
    """One call of a norm: enough to compute its output again."""

    number: int  # of the call, so that q, k and v recognise the same one
    epsilon: float
    x: Tensor
    scale: Tensor | None  # 1 / rms(x); None if PyTorch's own kernel computed the norm
    weight: Tensor

    def output(self) -> Tensor:
        return _normalise(self.x, self.scale, self.weight, self.epsilon)


def _normalise(x: Tensor, scale: Tensor | None, weight: Tensor, epsilon: float) -> Tensor:
    if scale is None:
        return torch.nn.functional.rms_norm(x, weight.shape, weight, epsilon)
    return weight * (x.to(scale.dtype) * scale).to(x.dtype)


class LeanLayers:
    """State shared by the replaced layers of one model: dtype of autocast, slabs, and two caches.

    q, k and v (gate and up) are given the same input one after the other, so one cast and one
    normalisation serve all of them.
    """

    def __init__(self, dtype: torch.dtype | None, slabs: Slabs) -> None:
        self.dtype, self.slabs = dtype, slabs
        self.numbers = count()
        self._cast_source: Any = None
        self._cast_version = -1
        self._cast_result: Any = None
        self._normed_number = -1
        self._normed_result: Any = None

    def cast(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        """Return `x` in `dtype`; the same tensor as in the last call if `x` has not changed."""
        if x.dtype == dtype:
            return x
        # A weak reference, so that the cache does not keep the input alive.
        same = self._cast_source is not None and self._cast_source() is x
        if not (same and self._cast_version == x._version and self._cast_result.dtype == dtype):
            self._cast_source, self._cast_version = weakref.ref(x), x._version
            self._cast_result = x.to(dtype)
        result: Tensor = self._cast_result
        return result

    def normalise_again(self, norm: Normed, dtype: torch.dtype) -> Tensor:
        """Return the output of a norm for the backward pass, computed once for all its users."""
        if norm.number != self._normed_number or self._normed_result.dtype != dtype:
            self._normed_number, self._normed_result = norm.number, norm.output().to(dtype)
        result: Tensor = self._normed_result
        return result


class LeanLinear(torch.autograd.Function):
    """x `[..., D]` and weight `[E, D]` to `[..., E]`, multiplied in `dtype`.

    If `x` is the output of a norm (`normed`), the input of that norm is kept instead of `x`.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        dtype: torch.dtype,
        layers: LeanLayers,
        normed: Normed | None = None,
    ) -> Tensor:
        low = layers.cast(x, dtype)
        kept: tuple[Tensor | None, ...] = (None,)
        if ctx.needs_input_grad[1]:
            kept = (normed.x, normed.scale, normed.weight) if normed else (low,)
        ctx.norm = (normed.number, normed.epsilon) if normed else None
        ctx.save_for_backward(weight, *kept)
        ctx.layers, ctx.dtypes = layers, (x.dtype, dtype)
        low_bias = None if bias is None else bias.to(dtype)
        return torch.nn.functional.linear(low, weight.to(dtype), low_bias)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        weight, *kept = ctx.saved_tensors
        (given, dtype), grad = ctx.dtypes, grads[0]
        needs_x, needs_weight, needs_bias, *_ = ctx.needs_input_grad
        dx = (grad @ weight.to(dtype)).to(given) if needs_x else None
        flat = grad.reshape(-1, grad.shape[-1])
        dw = None
        if needs_weight:
            low = kept[0]
            if ctx.norm:
                low = ctx.layers.normalise_again(Normed(*ctx.norm, *kept), dtype)
            dw = ctx.layers.slabs.gradient(flat.t() @ low.reshape(-1, low.shape[-1]), weight)
        db = flat.sum(0).to(weight.dtype) if needs_bias else None
        return dx, dw, db, None, None, None


class LeanGatedMLP(torch.autograd.Function):
    """(silu(gate) * up) @ weight^T: gate and up `[..., F]`, weight `[D, F]` to `[..., D]`.

    With `apart` the gate and the up projection are kept in slabs.
    """

    @staticmethod
    def forward(
        ctx: Any, gate: Tensor, up: Tensor, weight: Tensor, slabs: Slabs, apart: bool = False
    ) -> Tensor:
        kept = (slabs.copy_to_slab(gate), slabs.copy_to_slab(up)) if apart else (gate, up)
        ctx.save_for_backward(*kept, weight)
        ctx.slabs = slabs
        return (torch.nn.functional.silu(gate) * up) @ weight.to(gate.dtype).t()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        gate, up, weight = ctx.saved_tensors
        grad = grads[0]
        active = torch.nn.functional.silu(gate)
        dw = None
        if ctx.needs_input_grad[2]:
            inner = (active * up).reshape(-1, up.shape[-1])
            dw = ctx.slabs.gradient(grad.reshape(-1, grad.shape[-1]).t() @ inner, weight)
        d_inner = grad @ weight.to(gate.dtype)
        d_gate = torch.ops.aten.silu_backward(d_inner * up, gate)
        return d_gate, d_inner.mul_(active), dw, None, None


class LeanNorm(torch.autograd.Function):
    """weight * x / rms(x) over the last dimension, computed in at least fp32.

    Also returns 1 / rms(x), without gradient. `kept` is `x` in a slab, for the backward pass.
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
        # With u = x r and r = 1 / rms(x), the gradient of u is r (g - u mean(g u)).
        dx = (inner - unit.mul_((inner * unit).mean(-1, keepdim=True))).mul_(scale)
        return dx.to(x.dtype), dw, None, None


def use_lean_layers(model: Any, dtype: torch.dtype | None, slabs: Slabs | None = None) -> None:
    """Replace the forward pass of known layers; `dtype` is that of autocast, None without it."""
    layers = LeanLayers(dtype, slabs or Slabs())
    head = model.get_output_embeddings()
    for module in model.modules():
        if is_gated(module):
            _replace(module, _gated_forward, layers)
        elif is_norm(module):
            _replace(module, _norm_forward, layers)
        elif dtype is not None and is_fp32_router(module):
            _replace(module, _router_forward, layers)
        elif type(module) is torch.nn.Linear and module is not head:
            _replace(module, _linear_forward, layers)


def _replace(module: Any, forward: Callable[..., Tensor], layers: LeanLayers) -> None:
    module.lean_layers = layers
    module.forward = MethodType(forward, module)


def is_gated(module: Any) -> bool:
    """Whether a module is an MLP of three plain matrices with SiLU, and computes exactly that.

    Names are not enough: some models scale the gate.
    """
    parts = [getattr(module, name, None) for name in ("gate_proj", "up_proj", "down_proj")]
    if not all(type(part) is torch.nn.Linear and part.bias is None for part in parts):
        return False
    if type(getattr(module, "act_fn", None)).__name__ not in ("SiLU", "SiLUActivation"):
        return False
    with torch.no_grad():
        x = _probe_input(module.gate_proj.weight)
        gate, up = module.gate_proj(x), module.up_proj(x)
        try:
            plain = module(x)
        except (TypeError, RuntimeError):  # it wants more than states
            return False
        lean = (torch.nn.functional.silu(gate) * up) @ module.down_proj.weight.t()
        return bool(plain.shape == lean.shape and torch.allclose(plain, lean))


def is_norm(module: Any) -> bool:
    """Whether a module is Llama's RMSNorm, and computes exactly that.

    Some models of the same name add one to the weight, some round after multiplying by it.
    """
    if not (type(module).__name__.endswith("RMSNorm") and hasattr(module, "variance_epsilon")):
        return False
    if getattr(module, "weight", None) is None or getattr(module, "bias", None) is not None:
        return False
    with torch.no_grad():
        for dtype in (torch.float32, torch.bfloat16):
            x = _probe_input(module.weight).to(dtype)
            plain = module(x)
            lean = LeanNorm.apply(x, module.weight, module.variance_epsilon)[0]
            if plain.dtype != lean.dtype or not torch.equal(plain, lean):
                return False
    return True


def is_fp32_router(module: Any) -> bool:
    """Whether a module chooses experts and casts states and weights to fp32 for that by itself.

    Autocast would undo the cast, and near ties would go to other experts than in an engine.
    """
    weight = module._parameters.get("weight")
    name = type(module).__name__
    if weight is None or weight.ndim != 2 or not ("Router" in name or name.endswith("Gate")):
        return False
    try:
        with torch.no_grad():
            module(_probe_input(weight).to(torch.bfloat16))  # raises if it does not cast
    except (TypeError, RuntimeError, ValueError):
        return False
    return True


def _router_forward(self: Any, x: Tensor, *args: Any, **kwargs: Any) -> Any:
    with torch.autocast(x.device.type, enabled=False):
        return type(self).forward(self, x, *args, **kwargs)


def _probe_input(weight: Tensor) -> Tensor:
    """Return `[1, D]` distinct numbers for a weight `[..., D]`."""
    return torch.linspace(-2, 3, weight.shape[-1], dtype=weight.dtype, device=weight.device)[None]


def _linear_forward(self: Any, x: Tensor) -> Tensor:
    layers: LeanLayers = self.lean_layers
    normed: Normed | None = getattr(x, NORMED, None)
    if torch.is_autocast_enabled(x.device.type):
        dtype = layers.dtype
    else:
        # Without autocast only the input of a norm is saved; other products stay PyTorch's own.
        dtype = x.dtype if normed and x.dtype == self.weight.dtype else None
    if dtype is None:
        return torch.nn.functional.linear(x, self.weight, self.bias)
    with torch.autocast(x.device.type, enabled=False):
        result: Tensor = LeanLinear.apply(x, self.weight, self.bias, dtype, layers, normed)
    return result


def _gated_forward(self: Any, x: Tensor) -> Tensor:
    gate, up = self.gate_proj(x), self.up_proj(x)
    slabs = self.lean_layers.slabs
    with torch.autocast(x.device.type, enabled=False):
        result: Tensor = LeanGatedMLP.apply(
            gate, up, self.down_proj.weight, slabs, torch.is_grad_enabled()
        )
    return result


def _norm_forward(self: Any, x: Tensor) -> Tensor:
    layers: LeanLayers = self.lean_layers
    scale: Any = None
    result: Tensor
    kept = layers.slabs.copy_to_slab(x) if torch.is_grad_enabled() else x.detach()
    if _one_kernel(x) and x.dtype == self.weight.dtype == torch.float32:
        result = torch.nn.functional.rms_norm(
            x, self.weight.shape, self.weight, self.variance_epsilon
        )
    else:
        result, scale = LeanNorm.apply(x, self.weight, self.variance_epsilon, kept)
    normed = Normed(next(layers.numbers), self.variance_epsilon, kept, scale, self.weight)
    setattr(result, NORMED, normed)
    return result


def _one_kernel(x: Tensor) -> bool:
    """Whether to use PyTorch's RMSNorm kernel: on a GPU a small model waits for kernel launches."""
    return x.is_cuda
