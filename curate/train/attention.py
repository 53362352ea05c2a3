"""Attention over a tree of segments: each token sees the tokens before it in its own segment, and its ancestors.

Registered with transformers as an attention implementation, so that any model that lets its attention be chosen can be
trained in tree layout (`curate/train/layout.py`). Two ways to the same numbers:
- `matmul`: plain matrix products with the backward pass written out, which keeps no attention matrix. On a CPU it is
  several times as fast as the fused kernel for segments of some hundred tokens.
- `sdpa`: PyTorch's fused attention, a call a family of segments. For GPUs.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, cached_property
from typing import TYPE_CHECKING, Any

from curate.train.layout import Layout

if TYPE_CHECKING:
    from torch import Tensor

NAME = "curate_tree"


@dataclass
class FamilyIndex:
    """A family as index tensors. S members padded on the right to C tokens, A ancestor tokens."""

    ancestors: Tensor  # [A]
    members: Tensor  # [S, C]; padding repeats the first token of the member
    padding: Tensor | None  # [S, C] bool, or None where there is none
    hidden: Tensor  # [C, C] bool: what a token may not see of its own segment

    @cached_property
    def visible(self) -> Tensor | None:
        """`[C, A + C]` bool: what a token sees; None where that is its own segment only. Made once for all layers."""
        import torch

        n_up = self.ancestors.shape[0]
        above = torch.ones_like(self.hidden[:, :1]).expand(-1, n_up)
        return torch.cat([above, ~self.hidden], dim=1) if n_up else None


@dataclass
class TreeIndex:
    """All families, and where each token's output lies when their outputs are put one after the other."""

    families: list[FamilyIndex]
    inverse: Tensor  # [T]


def tree_index(layout: Layout) -> TreeIndex:
    """The index tensors of a layout, made once and used by every layer."""
    import torch

    device = layout.input_ids.device
    inverse = torch.empty(layout.input_ids.shape[1], dtype=torch.long)
    families, offset = [], 0
    for family in layout.families:
        width = max(end - start for start, end in family.members)
        members = torch.tensor([[start] * width for start, _ in family.members])
        padding = torch.ones_like(members, dtype=torch.bool)
        for i, (start, end) in enumerate(family.members):
            members[i, : end - start] = torch.arange(start, end)
            padding[i, : end - start] = False
            inverse[start:end] = torch.arange(offset + i * width, offset + i * width + end - start)
        offset += members.numel()
        ancestors = [torch.arange(start, end) for start, end in family.ancestors]
        families.append(
            FamilyIndex(
                ancestors=torch.cat(ancestors).to(device) if ancestors else torch.empty(0, dtype=torch.long).to(device),
                members=members.to(device),
                padding=padding.to(device) if bool(padding.any()) else None,
                hidden=torch.ones(width, width, dtype=torch.bool, device=device).triu(1),
            )
        )
    return TreeIndex(families, inverse.to(device))


def _grouped(x: Tensor, index: Tensor, kv_heads: int) -> Tensor:
    """`[H, T, d]` gathered to `[Hkv, S, (H / Hkv) C, d]`: query heads of one key head become rows of one matrix."""
    (size, width), (heads, _, dim) = index.shape, x.shape
    repeat = heads // kv_heads
    taken = x.index_select(1, index.reshape(-1))
    taken = taken.view(kv_heads, repeat, size, width, dim).transpose(1, 2)
    return taken.reshape(kv_heads, size, repeat * width, dim)


def _ungrouped(x: Tensor, heads: int, width: int) -> Tensor:
    """`[Hkv, S, (H / Hkv) C, d]` back to `[H, S C, d]`."""
    kv_heads, size, _, dim = x.shape
    repeat = heads // kv_heads
    return x.view(kv_heads, size, repeat, width, dim).transpose(1, 2).reshape(heads, size * width, dim)


def _probabilities(q: Tensor, k_own: Tensor, k_up: Tensor, family: FamilyIndex, scale: float) -> Tensor:
    """`[Hkv, S, R C, A + C]` attention weights of a family: ancestors first, then the own segment."""
    import torch

    kv_heads, size, rows, dim = q.shape
    width = family.members.shape[1]
    own = torch.matmul(q, k_own.transpose(-1, -2)).view(kv_heads, size, rows // width, width, width)
    own = own.masked_fill_(family.hidden, -torch.inf).view(kv_heads, size, rows, width)
    if k_up.shape[1]:
        up = torch.matmul(q.reshape(kv_heads, size * rows, dim), k_up.transpose(-1, -2)).view(kv_heads, size, rows, -1)
        own = torch.cat([up, own], dim=-1)
    return torch.softmax(own.mul_(scale), dim=-1)


@cache
def _function() -> Any:
    import torch

    class TreeAttention(torch.autograd.Function):
        """q `[H, T, d]`, k and v `[Hkv, T, d]` to `[H, T, d]`. The attention weights are computed again backward."""

        @staticmethod
        def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, tree: TreeIndex, scale: float) -> Tensor:
            outputs = []
            for family in tree.families:
                kv, n_up = k.shape[0], family.ancestors.shape[0]
                p = _probabilities(
                    _grouped(q, family.members, kv),
                    _grouped(k, family.members, kv),
                    k.index_select(1, family.ancestors),
                    family,
                    scale,
                )
                out = torch.matmul(p[..., n_up:], _grouped(v, family.members, kv))
                if n_up:
                    out += torch.matmul(p[..., :n_up].flatten(1, 2), v.index_select(1, family.ancestors)).view_as(out)
                outputs.append(_ungrouped(out, q.shape[0], family.members.shape[1]))
            result = torch.cat(outputs, dim=1).index_select(1, tree.inverse)
            ctx.save_for_backward(q, k, v, result)
            ctx.tree, ctx.scale = tree, scale
            return result

        @staticmethod
        def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
            q, k, v, result = ctx.saved_tensors
            grad, tree, scale = grads[0], ctx.tree, ctx.scale
            heads, kv = q.shape[0], k.shape[0]
            # softmax backward needs, for each token, the product of its output and the output's gradient
            delta_all = (grad * result).sum(-1, keepdim=True)
            wide = torch.promote_types(k.dtype, torch.float32)
            up_k, up_v = torch.zeros_like(k, dtype=wide), torch.zeros_like(v, dtype=wide)
            parts: tuple[list[Tensor], list[Tensor], list[Tensor]] = ([], [], [])
            for family in tree.families:
                index, n_up, width = family.members, family.ancestors.shape[0], family.members.shape[1]
                fq, fk, fv = (_grouped(x, index, kv) for x in (q, k, v))
                ak, av = k.index_select(1, family.ancestors), v.index_select(1, family.ancestors)
                fg, delta = _grouped(grad, index, kv), _grouped(delta_all, index, kv)
                if family.padding is not None:
                    # A padded query stands for a real token, whose gradient must not count twice.
                    pad = family.padding.repeat(1, heads // kv)[None, :, :, None]
                    fg, delta = fg.masked_fill(pad, 0), delta.masked_fill(pad, 0)
                p = _probabilities(fq, fk, ak, family, scale)
                d_own = torch.matmul(fg, fv.transpose(-1, -2))
                if n_up:
                    d_up = torch.matmul(fg.flatten(1, 2), av.transpose(-1, -2)).view(*fg.shape[:3], n_up)
                    d_own = torch.cat([d_up, d_own], dim=-1)
                ds = d_own.sub_(delta).mul_(p).mul_(scale)
                dq = torch.matmul(ds[..., n_up:], fk)
                if n_up:
                    ds_up, p_up = ds[..., :n_up].flatten(1, 2), p[..., :n_up].flatten(1, 2)
                    dq += torch.matmul(ds_up, ak).view_as(dq)
                    up_k.index_add_(1, family.ancestors, torch.matmul(ds_up.transpose(1, 2), fq.flatten(1, 2)).to(wide))
                    up_v.index_add_(1, family.ancestors, torch.matmul(p_up.transpose(1, 2), fg.flatten(1, 2)).to(wide))
                parts[0].append(_ungrouped(dq, heads, width))
                parts[1].append(torch.matmul(ds[..., n_up:].transpose(-1, -2), fq).flatten(1, 2))
                parts[2].append(torch.matmul(p[..., n_up:].transpose(-1, -2), fg).flatten(1, 2))
            dq, dk, dv = (torch.cat(part, dim=1).index_select(1, tree.inverse) for part in parts)
            return dq, (dk + up_k).to(k.dtype), (dv + up_v).to(v.dtype), None, None

    return TreeAttention


def matmul_attention(q: Tensor, k: Tensor, v: Tensor, tree: TreeIndex, scale: float) -> Tensor:
    """q `[H, T, d]`, k and v `[Hkv, T, d]` to `[H, T, d]`."""
    return _function().apply(q, k, v, tree, scale)


def sdpa_attention(q: Tensor, k: Tensor, v: Tensor, tree: TreeIndex, scale: float) -> Tensor:
    """The same by PyTorch's fused attention, with few launches: on a GPU they are what a small model waits for."""
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.nn.functional import scaled_dot_product_attention

    heads, repeat = q.shape[0], q.shape[0] // k.shape[0]
    every, outputs = torch.cat([q, k, v]), []
    # Not cuDNN's: one of three runs with it died, for whatever cause, and it was no faster (docs/train.md).
    with sdpa_kernel([SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]):
        for family in tree.families:
            size, width = family.members.shape
            taken = every.index_select(1, family.members.reshape(-1)).view(-1, size, width, q.shape[-1]).transpose(0, 1)
            fq, fkv = taken[:, :heads], taken[:, heads:]
            if family.ancestors.shape[0]:
                up = every[heads:].index_select(1, family.ancestors)
                fkv = torch.cat([up.expand(size, -1, -1, -1), fkv], dim=2)
            fk, fv = fkv.repeat_interleave(repeat, dim=1).chunk(2, dim=1)
            mask = family.visible
            out = scaled_dot_product_attention(fq, fk, fv, attn_mask=mask, is_causal=mask is None, scale=scale)
            outputs.append(out.transpose(0, 1).reshape(heads, size * width, -1))
    return torch.cat(outputs, dim=1).index_select(1, tree.inverse)


def tree_attention_forward(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    tree: TreeIndex | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """The interface that transformers calls. Without a tree it is plain fused attention."""
    if tree is None:
        from transformers.integrations.sdpa_attention import sdpa_attention_forward

        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
        )
    scale = scaling if scaling is not None else query.shape[-1] ** -0.5
    # Under autocast rotary embeddings leave queries and keys in fp32, beside values in bf16.
    q, k, v = query[0].to(value.dtype), key[0].to(value.dtype), value[0]
    attend = matmul_attention if v.device.type == "cpu" else sdpa_attention
    return attend(q, k, v, tree, scale).transpose(0, 1)[None].contiguous(), None


def register() -> str:
    """Make the implementation known to transformers; returns its name."""
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    if NAME not in ALL_ATTENTION_FUNCTIONS.valid_keys():
        ALL_ATTENTION_FUNCTIONS.register(NAME, tree_attention_forward)
    return NAME
