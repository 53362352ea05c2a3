"""The trunk of a model, from embeddings to last hidden state, and the ways to compute it.

A model of unknown architecture can be computed in several ways (tree or padded, replaced or own
attention). Its config says which are worth trying; `probe.py` determines which are correct.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from curate.errors import UsageError
from curate.train.model import attention
from curate.train.model.head import trunk_name
from curate.train.model.layout import Layout

# Layers that can use tree attention as long as no sequence is longer than their window.
ATTENTION_LAYERS = {"full_attention", "sliding_attention", "chunked_attention"}
# Names under which configs and modules hold the number of tokens that a layer looks back.
WINDOWS = ("sliding_window", "attention_window_size", "attention_chunk_size")


@dataclass(frozen=True)
class Way:
    """One way to compute a trunk."""

    layout: str  # tree or padded
    attention: str  # name of the attention implementation in transformers

    def __str__(self) -> str:
        if self.layout == "tree":
            return "tree"
        return f"padded rows ({self.attention} attention)"


@dataclass(frozen=True)
class LengthLimits:
    """Lengths in tokens at which the computation of a sequence changes."""

    window: int | None = None  # beyond it, a layer no longer sees the whole sequence
    # Beyond it, `longrope` uses other frequencies for every token of a call.
    rope_switch: int | None = None
    # Beyond it, `dynamic` frequencies depend on the longest sequences seen so far.
    rope_end: int | None = None
    positions: int | None = None  # that the model has learnt an embedding of

    def group(self, length: int) -> int:
        """Return the group of a sequence: different groups must not share a call.

        Raises UsageError if no call computes the sequence reproducibly.
        """
        if self.rope_end is not None and length > self.rope_end:
            raise UsageError(
                f"a sequence of {length} tokens is longer than the {self.rope_end} positions of "
                "this model, whose dynamic rotary embedding then depends on the sequences "
                "computed before: lower the length limits, or set rope_type yarn or linear in "
                "the model's config.json"
            )
        if self.positions is not None and length > self.positions:
            raise UsageError(
                f"a sequence of {length} tokens is longer than the {self.positions} positions of "
                "this model: lower the length limits"
            )
        beyond_window = self.window is not None and length > self.window
        switched = self.rope_switch is not None and length > self.rope_switch
        return int(beyond_window) + 2 * int(switched)

    def compatible(self, groups: Iterable[int]) -> bool:
        """Whether sequences of these groups may share a call: on one side of the rope switch."""
        return len({group // 2 for group in groups}) <= 1


class Trunk:
    """Calls the trunk of a transformers model (without adapters around it)."""

    def __init__(self, model: Any) -> None:
        self.model = model
        config = model.config
        self.text = config.get_text_config()
        self.module = model._modules[trunk_name(model)]
        self.limits = limits(self.text, self.module)
        parameters = inspect.signature(self.module.forward).parameters
        self.keywords = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
        self.accepted = set(parameters)
        # Some models with vision want the modality of each token when they train.
        self.token_types = (
            "token_type_ids" in self.accepted and getattr(config, "vision_config", None) is not None
        )
        self.own_attention = config._attn_implementation or "eager"

    def ways(self, preferred: str, tokens: int) -> list[Way]:
        """Return the ways worth trying, fastest first.

        `preferred` is the config's layout, `tokens` the size of its micro-batches.
        """
        ways = []
        kinds = set(getattr(self.text, "layer_types", None) or ["full_attention"])
        # Llama 4 counts positions in a row of tokens itself, and scales queries from here on.
        scaled_from = getattr(self.text, "floor_scale", None)
        if (
            preferred == "tree"
            and (scaled_from is None or tokens < scaled_from)
            and getattr(self.model, "_supports_attention_backend", False)
            and self.keywords
            and kinds <= ATTENTION_LAYERS
        ):
            ways.append(Way("tree", attention.register()))
        # PyTorch's fused attention has no softcap: transformers silently leaves it out.
        capped = getattr(self.text, "attn_logit_softcapping", None)
        if not capped:
            ways.append(Way("padded", self.own_attention))
        if capped or self.own_attention != "eager":
            ways.append(Way("padded", "eager"))
        return ways

    def use(self, name: str) -> None:
        """Set the attention implementation of the model and of the models inside it."""
        if self.model.config._attn_implementation != name:
            self.model.set_attn_implementation(name)
            # Some models cannot change it: their forward pass would use another one.
            if self.model.config._attn_implementation != name:
                raise UsageError(f"the model's attention cannot be set to {name}")

    def states(self, layout: Layout, **extra: Any) -> Tensor:
        """Return the last hidden states `[B, L, D]` of a layout."""
        inputs: dict[str, Any] = {"input_ids": layout.input_ids, **extra}
        if layout.attention_mask is not None:
            inputs["attention_mask"] = layout.attention_mask
        # Models without position ids count from 0 themselves, which is right for padding at the
        # end.
        if "position_ids" in self.accepted:
            inputs["position_ids"] = layout.position_ids
        if "use_cache" in self.accepted or self.keywords:
            inputs["use_cache"] = False
        if self.token_types:
            inputs["token_type_ids"] = torch.zeros_like(layout.input_ids)
        states: Tensor = self.module(**inputs)[0]
        return states


def limits(text: Any, module: Any) -> LengthLimits:
    """Read the limits from the config of a text model; `module` is its trunk."""
    windows = [
        value
        for name in WINDOWS
        if isinstance(value := getattr(text, name, None), int) and value > 0
    ]
    kinds = set(getattr(text, "layer_types", None) or [])
    if kinds and kinds <= {"full_attention"}:
        windows = []
    if getattr(text, "use_sliding_window", None) is False:
        windows = []
    sets = _rope_sets(text)
    switch = [
        r.get("original_max_position_embeddings") or text.max_position_embeddings
        for r in sets
        if r.get("rope_type") == "longrope"
    ]
    dynamic = any(r.get("rope_type") == "dynamic" for r in sets)
    return LengthLimits(
        window=min(windows, default=None),
        rope_switch=min(switch, default=None),
        rope_end=text.max_position_embeddings if dynamic else None,
        positions=_learnt_positions(text, module),
    )


def _rope_sets(config: Any) -> list[dict[str, Any]]:
    """Return the rope parameters of a config: one set, or one per kind of layer."""
    rope = getattr(config, "rope_parameters", None) or {}
    return [rope] if "rope_type" in rope else [v for v in rope.values() if isinstance(v, dict)]


def _learnt_positions(text: Any, module: Any) -> int | None:
    """Return the number of positions with learnt embeddings; None without a table of them.

    GPT-2 calls the table `wpe`, OPT `embed_positions`. Its first rows may belong to no position.
    """
    count = getattr(text, "max_position_embeddings", None)
    learnt = any(
        isinstance(part, torch.nn.Embedding)
        and (name.rpartition(".")[2] == "wpe" or "position" in name.rpartition(".")[2])
        and count is not None
        and part.num_embeddings >= count
        for name, part in module.named_modules()
    )
    return int(count) if learnt and count is not None else None


@contextlib.contextmanager
def short_windows(model: Any, size: int) -> Iterator[None]:
    """Shrink the windows of all layers to `size` tokens, so that a short probe crosses them."""
    before: list[tuple[Any, str, int]] = []
    for holder in [*_configs(model), *model.modules()]:
        for name in WINDOWS:
            value = holder.__dict__.get(name)
            if isinstance(value, int) and not isinstance(value, bool) and value > size:
                before.append((holder, name, value))
                setattr(holder, name, size)
    try:
        yield
    finally:
        for holder, name, value in before:
            setattr(holder, name, value)


@contextlib.contextmanager
def short_rope(model: Any, size: int) -> Iterator[None]:
    """Have `longrope` use its other frequencies beyond `size` tokens, as `short_windows` does."""
    name = "original_max_position_embeddings"
    before: list[tuple[Any, Any]] = []  # a config or its parameters, and the value there
    for config in _configs(model):
        rope = [r for r in _rope_sets(config) if r.get("rope_type") == "longrope"]
        before += [(r, r[name]) for r in rope]
        # transformers copies the value of the config into the parameters again and again.
        if rope and name in config.__dict__:
            before.append((config, config.__dict__[name]))

    def put(holder: Any, value: int) -> None:
        if isinstance(holder, dict):
            holder[name] = value
        else:
            setattr(holder, name, value)

    for holder, _ in before:
        put(holder, size)
    try:
        yield
    finally:
        for holder, value in before:
            put(holder, value)


def _configs(model: Any) -> list[Any]:
    """Return the configs of a model and of all modules in it, each once."""
    return list({id(m.config): m.config for m in model.modules() if hasattr(m, "config")}.values())
