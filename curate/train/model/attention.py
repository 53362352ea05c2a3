"""Attention over a tree of segments: a token sees its own segment up to itself, and its ancestors.

Registered with transformers as an attention implementation, so that any model with selectable
attention trains in tree layout (`layout.py`). There are two implementations with the same results:
- `matmul_attention`: plain matrix products with the backward pass written out, which keeps no
  attention matrix. On a CPU it is several times as fast as the fused kernel for segments of some
  hundred tokens.
- `sdpa_attention`: PyTorch's fused attention, one call per family of segments. For GPUs.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from curate.train.model.layout import Layout
from curate.train.model.slabs import Slabs

NAME = "curate_tree"  # of the attention implementation in transformers
CHANGES = {"softcap", "s_aux"}  # arguments that would change the result, whatever their type
PASSED_BY = {"position_ids", "cache_position"}  # tensors that mean nothing to attention


@dataclass
class FamilyIndex:
    """A family as index tensors: S members padded on the right to C tokens, A ancestor tokens."""

    ancestors: Tensor  # [A]
    members: Tensor  # [S, C]; padding repeats the first token of the member
    padding: Tensor | None  # [S, C] bool, or None if nothing is padded
    future: Tensor  # [C, C] bool: tokens of a token's own segment that it must not see
    masks: dict[torch.dtype, Tensor] = field(default_factory=dict)

    def mask(self, dtype: torch.dtype) -> Tensor | None:
        """Return the additive mask `[C, A + C]`, or None if plain causal attention is enough.

        Built once for all layers.
        """
        n_up = self.ancestors.shape[0]
        if n_up and dtype not in self.masks:
            hidden = torch.nn.functional.pad(self.future, (n_up, 0))
            mask = torch.zeros_like(hidden, dtype=dtype)
            self.masks[dtype] = mask.masked_fill_(hidden, -torch.inf)
        return self.masks.get(dtype)


@dataclass
class TreeIndex:
    """All families of a layout; `inverse` puts their concatenated outputs into token order."""

    families: list[FamilyIndex]
    inverse: Tensor  # [T]
    slabs: Slabs = field(default_factory=Slabs)
    # Whether the backward pass may gather its inputs again: not inside a gradient checkpoint, which
    # has its own saved-tensor hooks.
    regather: bool = True


def tree_index(layout: Layout) -> TreeIndex:
    """Build the index tensors of a layout, once for all layers."""
    device = layout.input_ids.device
    inverse = torch.empty(layout.input_ids.shape[1], dtype=torch.long)
    families, offset = [], 0
    for family in layout.families:
        lengths = {end - start for start, end in family.members}
        width, ragged = max(lengths), len(lengths) > 1
        members = torch.tensor([[start] * width for start, _ in family.members])
        padding = torch.ones_like(members, dtype=torch.bool)
        for i, (start, end) in enumerate(family.members):
            members[i, : end - start] = torch.arange(start, end)
            padding[i, : end - start] = False
            inverse[start:end] = torch.arange(offset + i * width, offset + i * width + end - start)
        offset += members.numel()
        ancestors = [torch.arange(start, end) for start, end in family.ancestors]
        ancestors = ancestors or [torch.empty(0, dtype=torch.long)]
        families.append(
            FamilyIndex(
                ancestors=torch.cat(ancestors).to(device),
                members=members.to(device),
                padding=padding.to(device) if ragged else None,
                future=torch.ones(width, width, dtype=torch.bool, device=device).triu(1),
            )
        )
    return TreeIndex(families, inverse.to(device))


def _grouped(x: Tensor, index: Tensor, kv_heads: int) -> Tensor:
    """Gather `[H, T, d]` to `[Hkv, S, (H / Hkv) C, d]`.

    The query heads that share a key head become rows of one matrix.
    """
    (size, width), (heads, _, dim) = index.shape, x.shape
    repeat = heads // kv_heads
    rows = x.index_select(1, index.reshape(-1))
    rows = rows.view(kv_heads, repeat, size, width, dim).transpose(1, 2)
    return rows.reshape(kv_heads, size, repeat * width, dim)


def _ungrouped(x: Tensor, heads: int, width: int) -> Tensor:
    """Turn `[Hkv, S, (H / Hkv) C, d]` back into `[H, S C, d]`."""
    kv_heads, size, _, dim = x.shape
    repeat = heads // kv_heads
    rows = x.view(kv_heads, size, repeat, width, dim).transpose(1, 2)
    return rows.reshape(heads, size * width, dim)


def _probabilities(
    q: Tensor, k_own: Tensor, k_up: Tensor, family: FamilyIndex, scale: float
) -> Tensor:
    """Attention weights `[Hkv, S, R C, A + C]` of a family: ancestors first, then own segment."""
    kv_heads, size, rows, dim = q.shape
    width = family.members.shape[1]
    own = torch.matmul(q, k_own.transpose(-1, -2)).view(kv_heads, size, rows // width, width, width)
    own = own.masked_fill_(family.future, -torch.inf).view(kv_heads, size, rows, width)
    if k_up.shape[1]:
        up = torch.matmul(q.reshape(kv_heads, size * rows, dim), k_up.transpose(-1, -2))
        own = torch.cat([up.view(kv_heads, size, rows, -1), own], dim=-1)
    return torch.softmax(own.mul_(scale), dim=-1)


class TreeAttention(torch.autograd.Function):
    """q `[H, T, d]`, k and v `[Hkv, T, d]` to `[H, T, d]`; the backward pass recomputes the
    weights.

    The output is one `[T, H, d]` block in memory, which the next layer keeps as well. With `apart`
    the tensors it keeps are in slabs.
    """

    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, tree: TreeIndex, scale: float, apart: bool
    ) -> Tensor:
        outputs = []
        kv = k.shape[0]
        for family in tree.families:
            n_up = family.ancestors.shape[0]
            p = _probabilities(
                _grouped(q, family.members, kv),
                _grouped(k, family.members, kv),
                k.index_select(1, family.ancestors),
                family,
                scale,
            )
            out = torch.matmul(p[..., n_up:], _grouped(v, family.members, kv))
            if n_up:
                up_v = v.index_select(1, family.ancestors)
                out += torch.matmul(p[..., :n_up].flatten(1, 2), up_v).view_as(out)
            outputs.append(_ungrouped(out, q.shape[0], family.members.shape[1]))
        result = torch.cat(outputs, dim=1).index_select(1, tree.inverse).transpose(0, 1)
        kept: tuple[Tensor, ...] = (q, k, v)
        if apart:
            result = tree.slabs.copy_to_slab(result)
            kept = tuple(tree.slabs.copy_to_slab(x) for x in kept)
        else:
            result = result.contiguous()
        ctx.save_for_backward(*kept, result)
        ctx.tree, ctx.scale = tree, scale
        return result.transpose(0, 1)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None, None]:
        q, k, v, result = ctx.saved_tensors
        grad, tree, scale = grads[0], ctx.tree, ctx.scale
        heads, kv = q.shape[0], k.shape[0]
        # The backward of softmax needs, per token, the product of its output and that output's
        # gradient.
        delta_all = (grad * result.transpose(0, 1)).sum(-1, keepdim=True)
        # Ancestors collect gradients from many families: summed in at least fp32.
        wide = torch.promote_types(k.dtype, torch.float32)
        up_k, up_v = torch.zeros_like(k, dtype=wide), torch.zeros_like(v, dtype=wide)
        parts: tuple[list[Tensor], list[Tensor], list[Tensor]] = ([], [], [])
        for family in tree.families:
            index, n_up = family.members, family.ancestors.shape[0]
            width = index.shape[1]
            fq, fk, fv = (_grouped(x, index, kv) for x in (q, k, v))
            ak, av = k.index_select(1, family.ancestors), v.index_select(1, family.ancestors)
            fg, delta = _grouped(grad, index, kv), _grouped(delta_all, index, kv)
            if family.padding is not None:
                # A padded query is a copy of a real token, whose gradient must not count twice.
                pad = family.padding.repeat(1, heads // kv)[None, :, :, None]
                fg, delta = fg.masked_fill(pad, 0), delta.masked_fill(pad, 0)
            p = _probabilities(fq, fk, ak, family, scale)
            d_p = torch.matmul(fg, fv.transpose(-1, -2))
            if n_up:
                d_up = torch.matmul(fg.flatten(1, 2), av.transpose(-1, -2))
                d_p = torch.cat([d_up.view(*fg.shape[:3], n_up), d_p], dim=-1)
            ds = d_p.sub_(delta).mul_(p).mul_(scale)
            dq = torch.matmul(ds[..., n_up:], fk)
            if n_up:
                ds_up, p_up = ds[..., :n_up].flatten(1, 2), p[..., :n_up].flatten(1, 2)
                dq += torch.matmul(ds_up, ak).view_as(dq)
                dk_up = torch.matmul(ds_up.transpose(1, 2), fq.flatten(1, 2))
                dv_up = torch.matmul(p_up.transpose(1, 2), fg.flatten(1, 2))
                up_k.index_add_(1, family.ancestors, dk_up.to(wide))
                up_v.index_add_(1, family.ancestors, dv_up.to(wide))
            parts[0].append(_ungrouped(dq, heads, width))
            parts[1].append(torch.matmul(ds[..., n_up:].transpose(-1, -2), fq).flatten(1, 2))
            parts[2].append(torch.matmul(p[..., n_up:].transpose(-1, -2), fg).flatten(1, 2))
        dq, dk, dv = (torch.cat(part, dim=1).index_select(1, tree.inverse) for part in parts)
        return dq, (dk + up_k).to(k.dtype), (dv + up_v).to(v.dtype), None, None, None


def matmul_attention(q: Tensor, k: Tensor, v: Tensor, tree: TreeIndex, scale: float) -> Tensor:
    """Attention by matrix products: q `[H, T, d]`, k and v `[Hkv, T, d]` to `[H, T, d]`."""
    return TreeAttention.apply(q, k, v, tree, scale, torch.is_grad_enabled())


def _family_heads(tokens: Tensor, family: FamilyIndex, heads: int) -> tuple[Tensor, Tensor, Tensor]:
    """Queries `[S, H, C, d]`, keys and values `[S, H, A + C, d]` of a family.

    `tokens` `[T, H + 2 Hkv, d]` holds queries, keys and values of all tokens.
    """
    size, width = family.members.shape
    rows = tokens.index_select(0, family.members.reshape(-1))
    rows = rows.view(size, width, *tokens.shape[1:]).transpose(1, 2)
    q, kv = rows[:, :heads], rows[:, heads:]
    if family.ancestors.shape[0]:
        up = tokens[:, heads:].index_select(0, family.ancestors).transpose(0, 1)
        kv = torch.cat([up.expand(size, -1, -1, -1), kv], dim=2)
    k, v = kv.repeat_interleave(2 * heads // kv.shape[1], dim=1).chunk(2, dim=1)
    return q, k, v


class GatherFamilies(torch.autograd.Function):
    """`[T, H + 2 Hkv, d]` to q, k and v of each family (`_family_heads`), one after the other.

    Its backward pass launches half as many kernels as autograd's.
    """

    @staticmethod
    def forward(ctx: Any, tokens: Tensor, tree: TreeIndex, heads: int) -> tuple[Tensor, ...]:
        ctx.tree, ctx.shape = tree, tokens.shape
        parts: list[Tensor] = []
        for family in tree.families:
            parts += _family_heads(tokens, family, heads)
        return tuple(parts)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        owns, ups = [], []
        for i, family in enumerate(ctx.tree.families):
            dq, dk, dv = grads[3 * i : 3 * i + 3]
            (size, heads, width, dim), n_up = dq.shape, family.ancestors.shape[0]
            both = torch.cat([dk, dv], dim=1)  # [S, 2 H, A + C, d]
            # Query heads that share a key head add up.
            both = both.view(size, ctx.shape[1] - heads, -1, n_up + width, dim).sum(2)
            own = torch.cat([dq.transpose(1, 2), both[:, :, n_up:].transpose(1, 2)], dim=2)
            owns.append(own.view(size * width, -1, dim))
            if n_up:
                ups.append((family.ancestors, both[:, :, :n_up].sum(0).transpose(0, 1)))
        result = torch.cat(owns).index_select(0, ctx.tree.inverse)
        for ancestors, up in ups:
            result[:, heads:].index_add_(0, ancestors, up)
        return result, None, None


class RegatheredTensors:
    """Saved-tensor hooks that gather the inputs of fused attention again for the backward pass.

    Fused attention would keep queries, keys, values and output once per head and segment. Here they
    are kept once per token.
    """

    def __init__(self, tokens: Tensor, family: FamilyIndex, heads: int) -> None:
        self.tokens, self.family, self.heads = tokens.detach(), family, heads
        self.result: Any = None  # [T, H, d], the output of all families
        self.parts: list[Any] = [None] * 3
        # entries saved for autograd: [tensor, None], or [None, k] for the k-th tensor given to
        # `forget`
        self.saved: list[list[Any]] = []

    def pack(self, tensor: Tensor) -> list[Any]:
        self.saved.append([tensor, None])
        return self.saved[-1]

    def unpack(self, saved: list[Any]) -> Tensor:
        tensor, which = saved
        if which is None:
            return tensor
        if which == 3:
            size, width = self.family.members.shape
            rows = self.result.index_select(0, self.family.members.reshape(-1))
            return rows.view(size, width, *self.result.shape[1:]).transpose(1, 2)
        if self.parts[which] is None:
            self.parts = list(_family_heads(self.tokens, self.family, self.heads))
        tensor, self.parts[which] = self.parts[which], None
        return tensor

    def forget(self, tensors: tuple[Tensor, ...]) -> None:
        """Release saved tensors that can be gathered again: q, k, v, output, in this order."""
        places = {(t.data_ptr(), t.shape, t.stride()): i for i, t in enumerate(tensors)}
        for saved in self.saved:
            which = places.get((saved[0].data_ptr(), saved[0].shape, saved[0].stride()))
            if which is not None:
                saved[:] = None, which
        self.saved = []


def sdpa_attention(q: Tensor, k: Tensor, v: Tensor, tree: TreeIndex, scale: float) -> Tensor:
    """Compute `matmul_attention` by PyTorch's fused attention, with few kernel launches."""
    heads, width = q.shape[0], v.shape[-1]
    # Latent attention (DeepSeek) has values of another width than keys: zeros fill them up.
    widest = max(q.shape[-1], width)
    q, k, v = (torch.nn.functional.pad(x, (0, widest - x.shape[-1])) for x in (q, k, v))
    tokens = torch.cat([x.transpose(0, 1) for x in (q, k, v)], dim=1)
    outputs, hooks = [], []
    parts = iter(GatherFamilies.apply(tokens, tree, heads))
    # Without cuDNN: one of three runs with it crashed, and it was not faster (docs/train.md).
    with sdpa_kernel([SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]):
        for family in tree.families:
            fq, fk, fv = next(parts), next(parts), next(parts)
            mask = family.mask(fq.dtype)
            regathered = RegatheredTensors(tokens, family, heads)
            saving: Any = contextlib.nullcontext()
            if tree.regather:
                saving = saved_tensors_hooks(regathered.pack, regathered.unpack)
            with saving:
                out = scaled_dot_product_attention(
                    fq, fk, fv, attn_mask=mask, is_causal=mask is None, scale=scale
                )
            regathered.forget((fq, fk, fv, out))
            hooks.append(regathered)
            outputs.append(out.transpose(1, 2).flatten(0, 1))
    result = torch.cat(outputs).index_select(0, tree.inverse)
    for regathered in hooks:
        regathered.result = result.detach()
    return result.transpose(0, 1)[..., :width]


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
    """Attention with the signature of transformers; without a tree it is PyTorch's fused
    attention.
    """
    if tree is None:
        from transformers.integrations.sdpa_attention import sdpa_attention_forward

        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
        )
    if attention_mask is not None:
        raise NotImplementedError("the attention of this model has a mask of its own")
    for name, given in kwargs.items():
        unknown = isinstance(given, Tensor) and name not in PASSED_BY
        if unknown or (name in CHANGES and given is not None):
            raise NotImplementedError(f"the attention of this model has '{name}'")
    scale = scaling if scaling is not None else query.shape[-1] ** -0.5
    # Under autocast rotary embeddings leave queries and keys in fp32, next to values in bf16.
    q, k, v = query[0].to(value.dtype), key[0].to(value.dtype), value[0]
    attend = matmul_attention if v.device.type == "cpu" else sdpa_attention
    return attend(q, k, v, tree, scale).transpose(0, 1)[None].contiguous(), None


def register() -> str:
    """Register the implementation with transformers and return its name."""
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    if NAME not in ALL_ATTENTION_FUNCTIONS.valid_keys():
        ALL_ATTENTION_FUNCTIONS.register(NAME, tree_attention_forward)
    return NAME
