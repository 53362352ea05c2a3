"""Attention over a tree of segments: each token sees the tokens before it in its own segment, and its ancestors.

Registered with transformers as an attention implementation, so that any model that lets its attention be chosen can be
trained in tree layout (`curate/train/model/layout.py`). Two ways to the same numbers:
- `matmul`: plain matrix products with the backward pass written out, which keeps no attention matrix. On a CPU it is
  several times as fast as the fused kernel for segments of some hundred tokens.
- `sdpa`: PyTorch's fused attention, a call a family of segments. For GPUs.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING, Any

from curate.train.model.layout import Layout
from curate.train.model.slabs import keep

if TYPE_CHECKING:
    import torch
    from torch import Tensor

NAME = "curate_tree"


@dataclass
class FamilyIndex:
    """A family as index tensors. S members padded on the right to C tokens, A ancestor tokens."""

    ancestors: Tensor  # [A]
    members: Tensor  # [S, C]; padding repeats the first token of the member
    padding: Tensor | None  # [S, C] bool, or None where there is none
    hidden: Tensor  # [C, C] bool: what a token may not see of its own segment
    masks: dict[Any, Tensor] = field(default_factory=dict)

    def mask(self, dtype: torch.dtype) -> Tensor | None:
        """`[C, A + C]`, what is added to the logits: 0 where a token sees, else minus infinity; None where it sees the
        beginning of its own segment and nothing else. Made once for all layers."""
        import torch

        n_up = self.ancestors.shape[0]
        if n_up and dtype not in self.masks:
            hidden = torch.nn.functional.pad(self.hidden, (n_up, 0))
            self.masks[dtype] = torch.zeros_like(hidden, dtype=dtype).masked_fill_(
                hidden, -torch.inf
            )
        return self.masks.get(dtype)


@dataclass
class TreeIndex:
    """All families, and where each token's output lies when their outputs are put one after the other."""

    families: list[FamilyIndex]
    inverse: Tensor  # [T]
    again: bool = (
        True  # whether what the backward pass needs may be gathered again: not inside a checkpoint
    )


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
                ancestors=torch.cat(ancestors).to(device)
                if ancestors
                else torch.empty(0, dtype=torch.long).to(device),
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
    return (
        x.view(kv_heads, size, repeat, width, dim).transpose(1, 2).reshape(heads, size * width, dim)
    )


def _probabilities(
    q: Tensor, k_own: Tensor, k_up: Tensor, family: FamilyIndex, scale: float
) -> Tensor:
    """`[Hkv, S, R C, A + C]` attention weights of a family: ancestors first, then the own segment."""
    import torch

    kv_heads, size, rows, dim = q.shape
    width = family.members.shape[1]
    own = torch.matmul(q, k_own.transpose(-1, -2)).view(kv_heads, size, rows // width, width, width)
    own = own.masked_fill_(family.hidden, -torch.inf).view(kv_heads, size, rows, width)
    if k_up.shape[1]:
        up = torch.matmul(q.reshape(kv_heads, size * rows, dim), k_up.transpose(-1, -2)).view(
            kv_heads, size, rows, -1
        )
        own = torch.cat([up, own], dim=-1)
    return torch.softmax(own.mul_(scale), dim=-1)


@cache
def _function() -> Any:
    import torch

    class TreeAttention(torch.autograd.Function):
        """q `[H, T, d]`, k and v `[Hkv, T, d]` to `[H, T, d]`. The attention weights are computed again backward.

        The output is one `[T, H, d]` in memory, which the next layer keeps too. `apart`: see keep.py.
        """

        @staticmethod
        def forward(
            ctx: Any,
            q: Tensor,
            k: Tensor,
            v: Tensor,
            tree: TreeIndex,
            scale: float,
            apart: bool = False,
        ) -> Tensor:
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
                    out += torch.matmul(
                        p[..., :n_up].flatten(1, 2), v.index_select(1, family.ancestors)
                    ).view_as(out)
                outputs.append(_ungrouped(out, q.shape[0], family.members.shape[1]))
            result = torch.cat(outputs, dim=1).index_select(1, tree.inverse).transpose(0, 1)
            result = keep(result) if apart else result.contiguous()
            ctx.save_for_backward(*((keep(x) for x in (q, k, v)) if apart else (q, k, v)), result)
            ctx.tree, ctx.scale = tree, scale
            return result.transpose(0, 1)

        @staticmethod
        def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None, None]:
            q, k, v, result = ctx.saved_tensors
            grad, tree, scale = grads[0], ctx.tree, ctx.scale
            heads, kv = q.shape[0], k.shape[0]
            # softmax backward needs, for each token, the product of its output and the output's gradient
            delta_all = (grad * result.transpose(0, 1)).sum(-1, keepdim=True)
            wide = torch.promote_types(k.dtype, torch.float32)
            up_k, up_v = torch.zeros_like(k, dtype=wide), torch.zeros_like(v, dtype=wide)
            parts: tuple[list[Tensor], list[Tensor], list[Tensor]] = ([], [], [])
            for family in tree.families:
                index, n_up, width = (
                    family.members,
                    family.ancestors.shape[0],
                    family.members.shape[1],
                )
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
                    d_up = torch.matmul(fg.flatten(1, 2), av.transpose(-1, -2)).view(
                        *fg.shape[:3], n_up
                    )
                    d_own = torch.cat([d_up, d_own], dim=-1)
                ds = d_own.sub_(delta).mul_(p).mul_(scale)
                dq = torch.matmul(ds[..., n_up:], fk)
                if n_up:
                    ds_up, p_up = ds[..., :n_up].flatten(1, 2), p[..., :n_up].flatten(1, 2)
                    dq += torch.matmul(ds_up, ak).view_as(dq)
                    up_k.index_add_(
                        1,
                        family.ancestors,
                        torch.matmul(ds_up.transpose(1, 2), fq.flatten(1, 2)).to(wide),
                    )
                    up_v.index_add_(
                        1,
                        family.ancestors,
                        torch.matmul(p_up.transpose(1, 2), fg.flatten(1, 2)).to(wide),
                    )
                parts[0].append(_ungrouped(dq, heads, width))
                parts[1].append(torch.matmul(ds[..., n_up:].transpose(-1, -2), fq).flatten(1, 2))
                parts[2].append(torch.matmul(p[..., n_up:].transpose(-1, -2), fg).flatten(1, 2))
            dq, dk, dv = (torch.cat(part, dim=1).index_select(1, tree.inverse) for part in parts)
            return dq, (dk + up_k).to(k.dtype), (dv + up_v).to(v.dtype), None, None, None

    return TreeAttention


def matmul_attention(q: Tensor, k: Tensor, v: Tensor, tree: TreeIndex, scale: float) -> Tensor:
    """q `[H, T, d]`, k and v `[Hkv, T, d]` to `[H, T, d]`."""
    import torch

    return _function().apply(q, k, v, tree, scale, torch.is_grad_enabled())


def _family_heads(every: Tensor, family: FamilyIndex, heads: int) -> tuple[Tensor, Tensor, Tensor]:
    """Queries `[S, H, C, d]`, keys and values `[S, H, A + C, d]` of a family, from those of all tokens
    (`[T, H + 2 Hkv, d]`)."""
    import torch

    size, width = family.members.shape
    taken = every.index_select(0, family.members.reshape(-1))
    taken = taken.view(size, width, *every.shape[1:]).transpose(1, 2)
    q, kv = taken[:, :heads], taken[:, heads:]
    if family.ancestors.shape[0]:
        up = every[:, heads:].index_select(0, family.ancestors).transpose(0, 1)
        kv = torch.cat([up.expand(size, -1, -1, -1), kv], dim=2)
    k, v = kv.repeat_interleave(2 * heads // kv.shape[1], dim=1).chunk(2, dim=1)
    return q, k, v


@cache
def _gather() -> Any:
    import torch

    class FamilyHeads(torch.autograd.Function):
        """`[T, H + 2 Hkv, d]` to what `_family_heads` gives for each family, one after the other. Its backward pass
        launches half of what autograd's would."""

        @staticmethod
        def forward(ctx: Any, every: Tensor, tree: TreeIndex, heads: int) -> tuple[Tensor, ...]:
            ctx.tree, ctx.shape = tree, every.shape
            return tuple(
                part for family in tree.families for part in _family_heads(every, family, heads)
            )

        @staticmethod
        def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
            owns, ups = [], []
            for i, family in enumerate(ctx.tree.families):
                dq, dk, dv = grads[3 * i : 3 * i + 3]
                (size, heads, width, dim), n_up = dq.shape, family.ancestors.shape[0]
                both = torch.cat(
                    [dk, dv], dim=1
                )  # [S, 2 H, A + C, d]; the heads of one key head are added up
                both = both.view(size, ctx.shape[1] - heads, -1, n_up + width, dim).sum(2)
                own = torch.cat([dq.transpose(1, 2), both[:, :, n_up:].transpose(1, 2)], dim=2)
                owns.append(own.view(size * width, -1, dim))
                if n_up:
                    ups.append((family.ancestors, both[:, :, :n_up].sum(0).transpose(0, 1)))
            result = torch.cat(owns).index_select(0, ctx.tree.inverse)
            for ancestors, up in ups:
                result[:, heads:].index_add_(0, ancestors, up)
            return result, None, None

    return FamilyHeads


class _Again:
    """What fused attention would keep for the backward pass, to be gathered again there: each token's queries, keys,
    values and output are kept once, not once a head and a segment."""

    def __init__(self, every: Tensor, family: FamilyIndex, heads: int) -> None:
        self.every, self.family, self.heads = every.detach(), family, heads
        self.result: Any = None  # [T, H, d], the output of all families
        self.parts: list[Any] = [None] * 3
        self.kept: list[
            list[Any]
        ] = []  # what autograd keeps: [tensor, None], or [None, which of ours it is]

    def pack(self, tensor: Tensor) -> list[Any]:
        self.kept.append([tensor, None])
        return self.kept[-1]

    def unpack(self, kept: list[Any]) -> Tensor:
        tensor, which = kept
        if which is None:
            return tensor
        if which == 3:
            size, width = self.family.members.shape
            taken = self.result.index_select(0, self.family.members.reshape(-1))
            return taken.view(size, width, *self.result.shape[1:]).transpose(1, 2)
        if self.parts[which] is None:
            self.parts = list(_family_heads(self.every, self.family, self.heads))
        tensor, self.parts[which] = self.parts[which], None
        return tensor

    def forget(self, ours: tuple[Tensor, ...]) -> None:
        """Let go of those that were kept and can be gathered again: q, k, v and the output, in this order."""
        known = {(t.data_ptr(), t.shape, t.stride()): i for i, t in enumerate(ours)}
        for kept in self.kept:
            which = known.get((kept[0].data_ptr(), kept[0].shape, kept[0].stride()))
            if which is not None:
                kept[:] = None, which
        self.kept = []


def sdpa_attention(q: Tensor, k: Tensor, v: Tensor, tree: TreeIndex, scale: float) -> Tensor:
    """The same by PyTorch's fused attention, with few launches: on a GPU they are what a small model waits for."""
    import torch
    from torch.autograd.graph import saved_tensors_hooks
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.nn.functional import scaled_dot_product_attention

    heads = q.shape[0]
    every = torch.cat([x.transpose(0, 1) for x in (q, k, v)], dim=1)
    outputs, agains, parts = [], [], iter(_gather().apply(every, tree, heads))
    # Not cuDNN's: one of three runs with it died, for whatever cause, and it was no faster (docs/train.md).
    with sdpa_kernel([SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]):
        for family in tree.families:
            fq, fk, fv = next(parts), next(parts), next(parts)
            mask = family.mask(fq.dtype)
            again = _Again(every, family, heads)
            with (
                saved_tensors_hooks(again.pack, again.unpack)
                if tree.again
                else contextlib.nullcontext()
            ):
                out = scaled_dot_product_attention(
                    fq, fk, fv, attn_mask=mask, is_causal=mask is None, scale=scale
                )
            again.forget((fq, fk, fv, out))
            agains.append(again)
            outputs.append(out.transpose(1, 2).flatten(0, 1))
    result = torch.cat(outputs).index_select(0, tree.inverse)
    for again in agains:
        again.result = result.detach()
    return result.transpose(0, 1)


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
