"""Log-probs of given tokens from hidden states, in chunks: no `[batch, length, vocabulary]` tensor ever exists.

The logits of one chunk of positions are computed, used and forgotten; the backward pass computes them again. That costs
one more product with the output matrix, and saves memory of vocabulary size for every position.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

VOCABULARY = 8192  # rows of the output matrix whose gradient is computed at once


def _logits(hidden: Tensor, weight: Tensor, scale: float, softcap: float | None) -> Tensor:
    """`[n, V]` logits in at least fp32; `softcap` as in Gemma 2: c tanh(z / c), before the temperature's `scale`."""
    import torch

    logits = torch.matmul(hidden, weight.t())
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    if softcap:
        logits = torch.tanh(logits / softcap) * softcap
    return logits.mul_(scale) if scale != 1.0 else logits


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
            ctx: Any, hidden: Tensor, weight: Tensor, target: Tensor, scale: float, chunk: int, entropy: bool, own: bool
        ) -> tuple[Tensor, Tensor]:
            outs, norms, entropies = [], [], []
            low = weight.to(hidden.dtype)
            for start in range(0, hidden.shape[0], chunk):
                part = slice(start, start + chunk)
                logits = _logits(hidden[part], low, scale, None)
                norm = torch.logsumexp(logits, -1)
                outs.append(logits.gather(1, target[part, None])[:, 0] - norm)
                norms.append(norm)
                if entropy:
                    # H = log Z - E[z]
                    p = torch.exp(logits - norm[:, None])
                    entropies.append(norm - p.mul_(logits).sum(-1))
            empty = hidden.new_zeros(0, dtype=torch.promote_types(hidden.dtype, torch.float32))
            norm = torch.cat(norms) if norms else empty
            ctx.save_for_backward(hidden, weight, target, norm)
            ctx.scale, ctx.chunk, ctx.weight = scale, chunk, weight if own else None
            h = torch.cat(entropies) if entropies else torch.zeros_like(norm)
            ctx.mark_non_differentiable(h)
            return torch.cat(outs) if outs else empty, h

        @staticmethod
        def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
            hidden, weight, target, norm = ctx.saved_tensors
            d_hidden = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
            d_weight: Any = None
            if ctx.needs_input_grad[1]:
                # Zeros where there is no position: sharded weights need a gradient on every rank.
                d_weight = ctx.weight.grad if ctx.weight is not None else None
                d_weight = torch.zeros_like(weight) if d_weight is None else d_weight
            low = weight.to(hidden.dtype)
            for start in range(0, hidden.shape[0], ctx.chunk):
                part = slice(start, start + ctx.chunk)
                # d log p_y / d z = scale (1[y] - p)
                d = _logits(hidden[part], low, ctx.scale, None).sub_(norm[part, None]).exp_().neg_()
                d.scatter_add_(1, target[part, None], torch.ones_like(d[:, :1]))
                d = d.mul_((grads[0][part] * ctx.scale)[:, None]).to(hidden.dtype)
                if d_hidden is not None:
                    torch.matmul(d, low, out=d_hidden[part])
                for begin in range(0, weight.shape[0], VOCABULARY) if d_weight is not None else ():
                    rows = slice(begin, begin + VOCABULARY)
                    d_weight[rows] += torch.matmul(d[:, rows].t(), hidden[part])
            if ctx.weight is not None:
                ctx.weight.grad, d_weight = d_weight, None
            return d_hidden, d_weight, None, None, None, None, None

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
    chunk: int = 256,
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

    return _checkpointed(part, hidden, target, chunk)


def token_divergence(
    hidden: Tensor,
    weight: Tensor,
    teacher_hidden: Tensor,
    teacher_weight: Tensor,
    *,
    kind: str = "forward",
    temperature: float = 1.0,
    chunk: int = 256,
) -> Tensor:
    """`[N]` divergences between student and teacher at `N` positions, exact over the vocabulary, in chunks."""

    def part(h: Tensor, g: Tensor) -> tuple[Tensor]:
        from curate.train.losses import divergence

        return (divergence(h @ weight.t() / temperature, g @ teacher_weight.t() / temperature, kind),)  # type: ignore[arg-type]

    return _checkpointed(part, hidden, teacher_hidden, chunk)[0]


def _checkpointed(part: Callable[..., tuple[Tensor, ...]], hidden: Tensor, other: Tensor, chunk: int) -> Any:
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
