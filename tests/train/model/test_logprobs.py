"""Chunked log-probs equal the plain ones, and never hold the logits of all positions."""

from __future__ import annotations

from typing import Any

import pytest

torch = pytest.importorskip("torch")

from curate.train.model import logprobs
from curate.train.model.logprobs import token_divergence, token_logprobs


def inputs(n: int = 13, d: int = 8, v: int = 40) -> tuple[Any, Any, Any]:
    g = torch.Generator().manual_seed(0)
    hidden = torch.randn(n, d, generator=g, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(v, d, generator=g, dtype=torch.float64, requires_grad=True)
    return hidden, weight, torch.randint(0, v, (n,), generator=g)


@pytest.mark.parametrize("block", [1, 7, 40])
@pytest.mark.parametrize("chunk", [1, 4, 13, 100])
@pytest.mark.parametrize(
    "options", [{}, {"softcap": 3.0}, {"scale": 0.5}, {"bias": torch.linspace(-1, 1, 40).double()}]
)
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_chunked_equals_plain(
    chunk: int,
    block: int,
    options: dict[str, Any],
    temperature: float,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(logprobs, "MIN_COLUMNS", block)
    monkeypatch.setattr(logprobs, "TILE", {"cpu": 1, "cuda": 1})
    hidden, weight, target = inputs()
    logits = hidden @ weight.t() + options.get("bias", 0)
    logits = logits * options.get("scale", 1.0)
    if cap := options.get("softcap"):
        logits = cap * torch.tanh(logits / cap)
    plain = torch.log_softmax(logits / temperature, -1)
    picked = plain.gather(1, target[:, None])[:, 0]
    uncertainty = -(plain.exp() * plain).sum(-1)
    (picked * torch.arange(13) + uncertainty * torch.linspace(-2, 2, 13)).sum().backward()
    expected = hidden.grad.clone(), weight.grad.clone()
    hidden.grad = weight.grad = None

    given: dict[str, Any] = {"scale": options["scale"]} if "scale" in options else {}
    if cap:
        given["logits"] = lambda h: cap * torch.tanh(h @ weight.t() / cap)
    elif "bias" in options:
        given["logits"] = lambda h: h @ weight.t() + options["bias"]
    values, entropy = token_logprobs(
        hidden, weight, target, temperature=temperature, chunk=chunk, entropy=True, **given
    )
    (values * torch.arange(13) + entropy * torch.linspace(-2, 2, 13)).sum().backward()
    assert torch.allclose(values, picked, atol=1e-12)
    assert torch.allclose(entropy, uncertainty, atol=1e-12)
    assert torch.allclose(hidden.grad, expected[0], atol=1e-11)
    assert torch.allclose(weight.grad, expected[1], atol=1e-11)


def test_no_tensor_as_large_as_all_logits_is_allocated() -> None:
    """Measure the largest tensor while computing 512 positions over 1,000 tokens in chunks of
    16.
    """
    from torch.utils._python_dispatch import TorchDispatchMode

    class Largest(TorchDispatchMode):
        size = 0

        def __torch_dispatch__(
            self, function: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            out = function(*args, **(kwargs or {}))
            for tensor in out if isinstance(out, list | tuple) else [out]:
                if isinstance(tensor, torch.Tensor):
                    self.size = max(self.size, tensor.numel())
            return out

    hidden, weight, target = (
        torch.randn(512, 4, requires_grad=True),
        torch.randn(1000, 4),
        torch.randint(0, 1000, (512,)),
    )
    with Largest() as largest:
        token_logprobs(hidden, weight, target, chunk=16, entropy=True)[0].sum().backward()
    assert largest.size <= 16 * 1000


@pytest.mark.parametrize("kind", ["forward", "reverse"])
def test_chunked_divergence_equals_plain(kind: str) -> None:
    from curate.train.losses import divergence

    hidden, weight, _ = inputs()
    other, teacher = (
        torch.randn(13, 6, dtype=torch.float64),
        torch.randn(40, 6, dtype=torch.float64),
    )
    plain = divergence(hidden @ weight.t(), other @ teacher.t(), kind)  # type: ignore[arg-type]
    plain.sum().backward()
    expected = hidden.grad.clone()
    hidden.grad = None
    chunked = token_divergence(
        hidden,
        other,
        lambda h: h @ weight.t(),
        lambda g: g @ teacher.t(),
        vocabulary=40,
        kind=kind,  # type: ignore[arg-type]
        chunk=4,
    )
    chunked.sum().backward()
    assert torch.allclose(chunked, plain, atol=1e-6)
    assert torch.allclose(hidden.grad, expected, atol=1e-6)


def test_no_positions_at_all() -> None:
    hidden, weight, target = inputs()
    values, _ = token_logprobs(hidden[:0], weight, target[:0])
    values.sum().backward()
    assert values.shape == (0,)
    assert float(weight.grad.abs().sum() if weight.grad is not None else 0) == 0
