"""The output head: from hidden states to log-probs of tokens, and to logits in chunks.

Most models multiply the last hidden state by a matrix, add a bias, scale and softly cap. Those
heads are computed in tiles (`logprobs.py`). Any other head (an unusual multiplier, an adapter) is
computed by the model's own `forward`, whose trunk is replaced by the given hidden states for that
call: slower, but exact whatever the head does. `probe.py` decides between the two by comparing
their numbers.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from curate.errors import UsageError
from curate.train.losses import DivergenceKind
from curate.train.model.logprobs import token_divergence, token_logprobs


class GivenStates(torch.nn.Module):
    """Stands in for the trunk of a model: returns hidden states instead of computing them."""

    def __init__(self, states: Tensor, trunk: Any) -> None:
        super().__init__()
        self.states = states
        self.__dict__["trunk"] = trunk  # not as a submodule: its weights are not part of the head

    def __getattr__(self, name: str) -> Any:
        # Falcon-H1 keeps the multiplier of its head in the trunk.
        return getattr(self.__dict__["trunk"], name)

    def forward(self, *_: Any, **__: Any) -> Any:
        return _TrunkOutput(self.states)


class _TrunkOutput(tuple[Tensor]):
    """Output of a trunk; all attributes except the states are None."""

    def __new__(cls, states: Tensor) -> _TrunkOutput:
        return super().__new__(cls, (states,))

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return self[0] if name == "last_hidden_state" else None


def trunk_name(model: Any) -> str:
    """Return the name of the submodule that computes the hidden states."""
    # Llama 4's prefix names a submodule that only its version with vision has.
    for name in (model.base_model_prefix, "model"):
        if name in model._modules:
            return str(name)
    raise UsageError(
        f"cannot separate the head of {type(model).__name__} from its trunk: use another model"
    )


@contextlib.contextmanager
def replaced_trunk(model: Any, states: Tensor) -> Iterator[None]:
    """Have a transformers model compute its head on `states` `[1, N, D]` for one call."""
    name = trunk_name(model)
    trunk = model._modules[name]
    model._modules[name] = GivenStates(states, trunk)
    try:
        yield
    finally:
        model._modules[name] = trunk


class OutputHead:
    """The head of a transformers model (without adapters around it).

    `tiled` heads are computed from their matrix, others by the model's own code.
    """

    def __init__(self, model: Any) -> None:
        # Not registered as a submodule of anything: the model owns its weights.
        self.model = model
        config = model.config.get_text_config()
        self.softcap: float | None = getattr(config, "final_logit_softcapping", None)
        # Cohere multiplies the logits, Granite divides them.
        self.scale = float(getattr(config, "logit_scale", None) or 1.0) / float(
            getattr(config, "logits_scaling", None) or 1.0
        )
        self.agrees = True  # whether a matrix, bias, scale and softcap are the whole head

    @property
    def tiled(self) -> bool:
        """Whether the head is computed from its matrix: never if it has an adapter."""
        return self.agrees and type(self.model.get_output_embeddings()) is torch.nn.Linear

    @property
    def weight(self) -> Tensor:
        """The output matrix `[V, D]`."""
        weight: Tensor = self.model.get_output_embeddings().weight
        return weight

    @property
    def bias(self) -> Tensor | None:
        return getattr(self.model.get_output_embeddings(), "bias", None)

    def own_logits(self, hidden: Tensor) -> Tensor:
        """Return logits `[n, V]` by the model's own code."""
        # The ids are ignored, but some models require them.
        ids = torch.zeros(1, hidden.shape[0], dtype=torch.long, device=hidden.device)
        with replaced_trunk(self.model, hidden[None]):
            logits: Tensor = self.model(input_ids=ids, use_cache=False).logits[0]
        return logits.to(torch.promote_types(logits.dtype, torch.float32))

    def logits(self, hidden: Tensor) -> Tensor:
        """Return logits `[n, V]` in at least fp32 for hidden states `[n, D]`."""
        if not self.tiled:
            return self.own_logits(hidden)
        bias = None if self.bias is None else self.bias.to(hidden.dtype)
        logits = torch.nn.functional.linear(hidden, self.weight.to(hidden.dtype), bias)
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32)) * self.scale
        return torch.tanh(logits / self.softcap) * self.softcap if self.softcap else logits

    def logprobs(
        self,
        hidden: Tensor,
        target: Tensor,
        *,
        temperature: float = 1.0,
        chunk: int = 1024,
        entropy: bool = False,
        in_place: bool = False,
    ) -> tuple[Tensor, Tensor]:
        """Return log-probs `[N]` of the tokens `target`, and entropies `[N]` in nats."""
        plain = self.tiled and self.bias is None and not self.softcap
        return token_logprobs(
            hidden,
            self.weight,
            target,
            temperature=temperature,
            scale=self.scale,
            logits=None if plain else self.logits,
            chunk=chunk,
            entropy=entropy,
            in_place=in_place,
        )

    def divergences(
        self,
        hidden: Tensor,
        teacher: OutputHead,
        teacher_hidden: Tensor,
        *,
        kind: DivergenceKind,
        temperature: float,
        chunk: int,
    ) -> Tensor:
        """Return divergences `[N]` from the teacher, over the tokens that both models have.

        Models of one tokenizer may pad their vocabularies differently: rows beyond the smaller one
        mean no token.
        """
        common = min(self.weight.shape[0], teacher.weight.shape[0])
        return token_divergence(
            hidden,
            teacher_hidden,
            lambda h: self.logits(h)[:, :common],
            lambda h: teacher.logits(h)[:, :common],
            vocabulary=max(self.weight.shape[0], teacher.weight.shape[0]),
            kind=kind,
            temperature=temperature,
            chunk=chunk,
        )
