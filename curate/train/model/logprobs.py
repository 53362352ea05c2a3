"""Log-probs of given tokens from hidden states, in tiles: no `[batch, length, vocabulary]` tensor.

The logits of one chunk of positions and one block of the vocabulary are computed, used and dropped
while they are in the processor's cache; the backward pass computes them again. That costs one more
product with the output matrix, and saves memory of vocabulary size for every position.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from curate.train.losses import DivergenceKind, divergence

# Elements of the logits that exist at once: 8 MiB, which fit a processor's cache; 64 MiB on a GPU,
# where every tile costs kernel launches.
TILE = {"cpu": 1 << 21, "cuda": 1 << 24}
WHOLE = 1 << 24  # the limit if the head cannot be computed in tiles: 64 MiB
MIN_COLUMNS = 256  # of a tile: a narrower matrix product is mostly overhead


def _tiles(
    hidden: Tensor, weight: Tensor, target: Tensor, scale: float, chunk: int
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Yield the logits `[n, b]` (in at least fp32) for one block of the vocabulary after another.

    Each comes with the column of every target (`[n, 1]`; an arbitrary column if the target is in
    another block) and whether the target is in this block (`[n]`).
    """
    columns = max(MIN_COLUMNS, TILE.get(hidden.device.type, TILE["cuda"]) // chunk)
    for begin in range(0, weight.shape[0], columns):
        low = weight[begin : begin + columns].to(hidden.dtype)
        column = (target - begin).clamp(0, low.shape[0] - 1)
        logits = torch.matmul(hidden, low.t())
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        yield (
            logits.mul_(scale) if scale != 1.0 else logits,
            column[:, None],
            target == column + begin,
        )


class TiledLogProbs(torch.autograd.Function):
    """hidden `[N, D]`, weight `[V, D]`, target `[N]` to log-probs `[N]` and entropies `[N]`.

    Products are computed in the dtype of `hidden`. With `in_place` the
    gradient of the weight is added to `weight.grad` here, as autograd would do, but without a
    second matrix of its size.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        target: Tensor,
        scale: float,
        chunk: int,
        entropy: bool,
        in_place: bool,
    ) -> tuple[Tensor, Tensor]:
        wide = torch.promote_types(hidden.dtype, torch.float32)
        logprobs = hidden.new_empty(hidden.shape[0], dtype=wide)
        log_norm, entropies = torch.empty_like(logprobs), torch.zeros_like(logprobs)
        for start in range(0, hidden.shape[0], chunk):
            part = slice(start, start + chunk)
            # Running values over the blocks of the vocabulary: the largest logit, the sums of
            # e^(z - top) and of (z - top) e^(z - top), and the target's logit.
            top: Any = None
            total: Any = None
            product: Any = None
            chosen: Any = None
            for z, column, here in _tiles(hidden[part], weight, target[part], scale, chunk):
                candidate = z.gather(1, column)[:, 0]
                chosen = candidate if chosen is None else torch.where(here, candidate, chosen)
                highest = z.amax(-1)
                new_top = highest if top is None else torch.maximum(top, highest)
                z.sub_(new_top[:, None])
                p = z.exp() if entropy else z.exp_()
                new_total: Any = p.sum(-1)
                new_product: Any = p.mul_(z).sum(-1) if entropy else None
                if top is not None:
                    shrink = torch.exp(top - new_top)
                    if entropy:
                        new_product += shrink * (product + total * (top - new_top))
                    new_total += shrink * total
                top, total, product = new_top, new_total, new_product
            log_norm[part] = top + torch.log(total)
            logprobs[part] = chosen - log_norm[part]
            if entropy:  # H = log Z - E[z]
                entropies[part] = torch.log(total) - product / total
        ctx.save_for_backward(hidden, weight, target, log_norm, entropies if entropy else None)
        ctx.scale, ctx.chunk, ctx.weight = scale, chunk, weight if in_place else None
        ctx.set_materialize_grads(False)  # most losses use log-probs only
        return logprobs, entropies

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        hidden, weight, target, log_norm, entropies = ctx.saved_tensors
        by_logprob, by_entropy = grads
        if by_logprob is None:
            by_logprob = torch.zeros_like(log_norm)
        d_hidden: Any = None
        d_weight: Any = None
        if ctx.needs_input_grad[0]:
            d_hidden = torch.zeros_like(hidden, dtype=log_norm.dtype)
        if ctx.needs_input_grad[1]:
            # Zeros without positions: sharded weights need a gradient on every rank.
            d_weight = ctx.weight.grad if ctx.weight is not None else None
            d_weight = torch.zeros_like(weight) if d_weight is None else d_weight
        for start in range(0, hidden.shape[0], ctx.chunk):
            part = slice(start, start + ctx.chunk)
            states, factor = hidden[part], (by_logprob[part] * ctx.scale)[:, None]
            begin = 0
            for z, column, here in _tiles(states, weight, target[part], ctx.scale, ctx.chunk):
                rows = slice(begin, begin + z.shape[1])
                z.sub_(log_norm[part, None])
                bonus: Any = None
                if by_entropy is not None and entropies is not None:
                    # d H / d z = - scale p (log p + H)
                    bonus = (z + entropies[part, None]).mul_(z.exp())
                    bonus.mul_((by_entropy[part] * ctx.scale)[:, None])
                # d log p_y / d z = scale (1[y] - p)
                z.exp_().neg_()
                z.scatter_add_(1, column, here[:, None].to(z.dtype))
                z.mul_(factor)
                d = (z if bonus is None else z.sub_(bonus)).to(hidden.dtype)
                if d_hidden is not None:
                    d_hidden[part] += torch.matmul(d, weight[rows].to(hidden.dtype))
                if d_weight is not None:
                    d_weight[rows] += torch.matmul(d.t(), states)
                begin = rows.stop
        if ctx.weight is not None:
            ctx.weight.grad, d_weight = d_weight, None
        d_hidden = None if d_hidden is None else d_hidden.to(hidden.dtype)
        return d_hidden, d_weight, None, None, None, None, None


def token_logprobs(
    hidden: Tensor,
    weight: Tensor,
    target: Tensor,
    *,
    temperature: float = 1.0,
    scale: float = 1.0,
    logits: Callable[[Tensor], Tensor] | None = None,
    chunk: int = 1024,
    entropy: bool = False,
    in_place: bool = False,
) -> tuple[Tensor, Tensor]:
    """Return the log-probs `[N]` of the tokens `target` (`[N]`), and entropies `[N]` in nats.

    Both have a gradient. Entropies are zeros without `entropy`. `hidden` `[N, D]` are the states
    that predict the tokens, `weight` `[V, D]` is the output matrix. Log-probs are those of
    softmax(logits / temperature), which is what an engine samples from at that temperature. Logits
    are `scale` times their product, or the result of `logits` if given, which is not computed in
    tiles. `in_place`: `weight` is a leaf whose gradient may be summed in place.
    """
    if logits is None:
        in_place = in_place and weight.is_leaf and weight.requires_grad
        factor = scale / temperature
        return TiledLogProbs.apply(hidden, weight, target, factor, chunk, entropy, in_place)

    def part(h: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        logs = torch.log_softmax(logits(h) / temperature, -1)
        # Some heads forbid tokens by -inf, and 0 * inf would be nan.
        finite = logs.clamp(min=torch.finfo(logs.dtype).min)
        return logs.gather(1, y[:, None])[:, 0], -(logs.exp() * finite).sum(-1)

    return _in_chunks(part, hidden, target, _whole_rows(weight.shape[0], chunk))


def token_divergence(
    hidden: Tensor,
    teacher_hidden: Tensor,
    logits: Callable[[Tensor], Tensor],
    teacher_logits: Callable[[Tensor], Tensor],
    *,
    vocabulary: int,
    kind: DivergenceKind = "forward",
    temperature: float = 1.0,
    chunk: int = 1024,
) -> Tensor:
    """Return divergences `[N]` between student and teacher, exact over the vocabulary, in chunks.

    `logits` and `teacher_logits` turn hidden states `[n, D]` into logits `[n, V]` of the same V.
    """

    def part(h: Tensor, g: Tensor) -> tuple[Tensor]:
        student, teacher = logits(h) / temperature, teacher_logits(g) / temperature
        return (divergence(student, teacher, kind),)

    return _in_chunks(part, hidden, teacher_hidden, _whole_rows(vocabulary, chunk))[0]


def _whole_rows(vocabulary: int, chunk: int) -> int:
    """Return the number of positions whose logits over the whole vocabulary may exist at once."""
    return max(1, min(chunk, WHOLE // vocabulary))


def _in_chunks(
    part: Callable[..., tuple[Tensor, ...]], hidden: Tensor, other: Tensor, chunk: int
) -> Any:
    """Run `part` on chunks of positions; its logits are computed again for the backward pass."""
    if hidden.shape[0] == 0:
        return part(hidden, other)
    outs = [
        checkpoint(part, hidden[i : i + chunk], other[i : i + chunk], use_reentrant=False)
        for i in range(0, hidden.shape[0], chunk)
    ]
    return tuple(torch.cat(column) for column in zip(*outs, strict=True))
