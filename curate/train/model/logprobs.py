"""Log-probs of given tokens from hidden states, in tiles: no `[batch, length, vocabulary]` tensor ever exists.

The logits of one chunk of positions and one block of the vocabulary are computed, used and forgotten while they are
still in the processor's cache; the backward pass computes them again. That costs one more product with the output
matrix, and saves memory of vocabulary size for every position.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

# Logits that exist at once: 8 MiB, what a processor's cache holds; 64 MiB on a GPU, where each tile is some launches.
TILE = {"cpu": 1 << 21, "cuda": 1 << 24}
WHOLE = 1 << 24  # where they cannot be computed in tiles: 64 MiB
NARROWEST = 256  # columns of a tile: below it a matrix product is all overhead


def _logits(hidden: Tensor, weight: Tensor, scale: float, softcap: float | None) -> Tensor:
    """`[n, V]` logits in at least fp32; `softcap` as in Gemma 2: c tanh(z / c), before the temperature's `scale`."""
    import torch

    logits = torch.matmul(hidden, weight.t())
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    if softcap:
        logits = torch.tanh(logits / softcap) * softcap
    return logits.mul_(scale) if scale != 1.0 else logits


def _blocks(
    hidden: Tensor, weight: Tensor, target: Tensor, scale: float, chunk: int
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Logits `[n, b]` for one block of the vocabulary after the other, the column of each target in it (`[n, 1]`, some
    column where it is in another block), and whether it is in this one (`[n]`)."""
    size = max(NARROWEST, TILE.get(hidden.device.type, TILE["cuda"]) // chunk)
    for begin in range(0, weight.shape[0], size):
        low = weight[begin : begin + size].to(hidden.dtype)
        place = (target - begin).clamp(0, low.shape[0] - 1)
        yield _logits(hidden, low, scale, None), place[:, None], target == place + begin


@cache
def _function() -> Any:
    import torch

    class ChunkedLogProbs(torch.autograd.Function):
        """hidden `[N, D]`, weight `[V, D]`, target `[N]` to log-probs `[N]` and entropies `[N]` (without gradient).

        The products are computed in the dtype of `hidden`. With `own` the gradient of the weight is added to
        `weight.grad` here, as autograd would do it, but without a second matrix of its size.
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
            own: bool,
        ) -> tuple[Tensor, Tensor]:
            empty = hidden.new_empty(
                hidden.shape[0], dtype=torch.promote_types(hidden.dtype, torch.float32)
            )
            out, norm, h = empty, torch.empty_like(empty), torch.zeros_like(empty)
            for start in range(0, hidden.shape[0], chunk):
                part = slice(start, start + chunk)
                # The largest logit so far, the sums of e^(z - top) and of (z - top) e^(z - top), the target's logit.
                top: Any = None
                total: Any = None
                mean: Any = None
                chosen: Any = None
                for z, place, here in _blocks(hidden[part], weight, target[part], scale, chunk):
                    found = z.gather(1, place)[:, 0]
                    chosen = found if chosen is None else torch.where(here, found, chosen)
                    highest = z.amax(-1)
                    new = highest if top is None else torch.maximum(top, highest)
                    z.sub_(new[:, None])
                    p = z.exp() if entropy else z.exp_()
                    sums: Any = p.sum(-1)
                    products: Any = p.mul_(z).sum(-1) if entropy else None
                    if top is not None:
                        shrink = torch.exp(top - new)
                        if entropy:
                            products += shrink * (mean + total * (top - new))
                        sums += shrink * total
                    top, total, mean = new, sums, products
                norm[part] = top + torch.log(total)
                out[part] = chosen - norm[part]
                if entropy:  # H = log Z - E[z]
                    h[part] = torch.log(total) - mean / total
            ctx.save_for_backward(hidden, weight, target, norm)
            ctx.scale, ctx.chunk, ctx.weight = scale, chunk, weight if own else None
            ctx.mark_non_differentiable(h)
            return out, h

        @staticmethod
        def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
            hidden, weight, target, norm = ctx.saved_tensors
            d_hidden = (
                torch.zeros_like(hidden, dtype=norm.dtype) if ctx.needs_input_grad[0] else None
            )
            d_weight: Any = None
            if ctx.needs_input_grad[1]:
                # Zeros where there is no position: sharded weights need a gradient on every rank.
                d_weight = ctx.weight.grad if ctx.weight is not None else None
                d_weight = torch.zeros_like(weight) if d_weight is None else d_weight
            for start in range(0, hidden.shape[0], ctx.chunk):
                part = slice(start, start + ctx.chunk)
                states, factor = hidden[part], (grads[0][part] * ctx.scale)[:, None]
                begin = 0
                for z, place, here in _blocks(states, weight, target[part], ctx.scale, ctx.chunk):
                    rows = slice(begin, begin + z.shape[1])
                    # d log p_y / d z = scale (1[y] - p)
                    z.sub_(norm[part, None]).exp_().neg_().scatter_add_(
                        1, place, here[:, None].to(z.dtype)
                    )
                    d = z.mul_(factor).to(hidden.dtype)
                    if d_hidden is not None:
                        d_hidden[part] += torch.matmul(d, weight[rows].to(hidden.dtype))
                    if d_weight is not None:
                        d_weight[rows] += torch.matmul(d.t(), states)
                    begin = rows.stop
            if ctx.weight is not None:
                ctx.weight.grad, d_weight = d_weight, None
            return (
                None if d_hidden is None else d_hidden.to(hidden.dtype),
                d_weight,
                None,
                None,
                None,
                None,
                None,
            )

    return ChunkedLogProbs


def token_logprobs(
    hidden: Tensor,
    weight: Tensor,
    target: Tensor,
    *,
    temperature: float = 1.0,
    scale: float = 1.0,
    softcap: float | None = None,
    bias: Tensor | None = None,
    chunk: int = 1024,
    entropy: bool = False,
    own: bool = False,
) -> tuple[Tensor, Tensor]:
    """Log-probs `[N]` of the tokens `target` (`[N]`) and, where asked, entropies `[N]` in nats (else zeros).

    `hidden` `[N, D]` are the states that predict them, `weight` `[V, D]` the output matrix. Log-probs are those of
    softmax(logits * scale / temperature): what an engine samples from at that temperature. `own`: `weight` is a leaf
    whose gradient may be added to where it lies.
    """
    if bias is None and not softcap:
        own = own and weight.is_leaf and weight.requires_grad
        return _function().apply(hidden, weight, target, scale / temperature, chunk, entropy, own)
    weight = weight.to(hidden.dtype)

    def part(h: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        import torch

        logits = torch.nn.functional.linear(h, weight, bias)
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32)) * scale
        if softcap:
            logits = torch.tanh(logits / softcap) * softcap
        logs = torch.log_softmax(logits / temperature, -1)
        return logs.gather(1, y[:, None])[:, 0], -(logs.exp() * logs).sum(-1).detach()

    return _checkpointed(part, hidden, target, _whole(weight, chunk))


def token_divergence(
    hidden: Tensor,
    weight: Tensor,
    teacher_hidden: Tensor,
    teacher_weight: Tensor,
    *,
    kind: str = "forward",
    temperature: float = 1.0,
    chunk: int = 1024,
) -> Tensor:
    """`[N]` divergences between student and teacher at `N` positions, exact over the vocabulary, in chunks."""

    def part(h: Tensor, g: Tensor) -> tuple[Tensor]:
        from curate.train.losses import divergence

        student, teacher = h @ weight.t() / temperature, g @ teacher_weight.t() / temperature
        return (divergence(student, teacher, kind),)  # type: ignore[arg-type]

    return _checkpointed(part, hidden, teacher_hidden, _whole(weight, chunk))[0]


def _whole(weight: Tensor, chunk: int) -> int:
    """Positions whose logits over the whole vocabulary may exist at once, where they are not computed in tiles."""
    return max(1, min(chunk, WHOLE // weight.shape[0]))


def _checkpointed(
    part: Callable[..., tuple[Tensor, ...]], hidden: Tensor, other: Tensor, chunk: int
) -> Any:
    """Run `part` chunk by chunk; its logits are computed again for the backward pass."""
    import torch
    from torch.utils.checkpoint import checkpoint

    if hidden.shape[0] == 0:
        return part(hidden, other)
    outs = [
        checkpoint(part, hidden[i : i + chunk], other[i : i + chunk], use_reentrant=False)
        for i in range(0, hidden.shape[0], chunk)
    ]
    return tuple(torch.cat(column) for column in zip(*outs, strict=True))
