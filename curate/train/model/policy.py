"""A causal language model for training: fp32 weights, and bf16 products if they are faster.

`policy.logprobs(policy.layout(sequences))` gives the log-probs of the completion tokens of one
micro-batch, which is all that a loss needs. Logits of a whole sequence never exist.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from curate.engines.precision import fast_bf16
from curate.errors import UsageError
from curate.train.config import ModelConfig
from curate.train.losses import DivergenceKind
from curate.train.model import attention
from curate.train.model.devices import pick_device
from curate.train.model.head import OutputHead
from curate.train.model.layers import use_lean_layers
from curate.train.model.layout import (
    Layout,
    PromptCompletion,
    micro_batches,
    padded_layout,
    tree_layout,
)
from curate.train.model.lora import add_lora
from curate.train.model.probe import Probe, refusals
from curate.train.model.slabs import Slabs, trim_heap
from curate.train.model.trunk import Trunk, Way
from curate.train.ranks import Ranks


class Policy:
    """A model, how it is computed, and its log-probs. `module` is the part that FSDP wraps.

    Raises UsageError if no way to compute the model gives transformers' log-probs (`probe.py`).
    """

    def __init__(self, model: Any, compute: ModelConfig, *, device: str | None = None) -> None:
        self.compute = compute
        self.device = torch.device(device or pick_device(compute.device))
        self.autocast = compute.precision == "bf16" or (
            compute.precision == "auto" and fast_bf16(self.device)
        )
        self.slabs = Slabs()
        self.files: dict[str, bytes] = {}  # that an export of the model copies, by name
        model = model.to(self.device)
        with refusals(model):
            self.trunk, self.head = Trunk(model), OutputHead(model)
            probe = Probe(model, self.trunk, self.head)
            if compute.lora:
                model = add_lora(model, compute.lora)
            use_lean_layers(model, torch.bfloat16 if self.autocast else None, self.slabs)
            self.model = model
            self.module = Scorer(self.model, self)
            ways = self.trunk.ways(compute.layout, compute.micro_batch_tokens)
            self.ways = probe.choose(ways, self._probed)
        keep_dropout_only(model)
        if compute.gradient_checkpointing:
            model.enable_input_require_grads()
            model.gradient_checkpointing_enable(
                gradient_checkpointing_kwargs={"use_reentrant": False}
            )

    def _probed(self, way: Way, sequences: list[PromptCompletion]) -> list[Tensor]:
        """Log-probs of the probe's sequences in one way, in the precision of the weights."""
        autocast, self.autocast = self.autocast, False
        try:
            with torch.no_grad(), self.without_dropout():
                layout = self._arrange(sequences, way)
                values = self.logprobs(layout)[0]
        finally:
            self.autocast = autocast
        return [values[layout.row == i] for i in range(len(sequences))]

    def describe(self) -> str:
        """Return how the model is computed, in a few words."""
        text = str(self.ways[0])
        if self.ways[0].layout == "tree" and (window := self.trunk.limits.window):
            beyond = f"as {self.ways[1]}" if len(self.ways) > 1 else "not at all"
            text += f", sequences beyond {window} tokens {beyond}"
        return text if self.head.tiled else f"{text}, the head by transformers"

    @property
    def vocabulary(self) -> int:
        return int(self.head.weight.shape[0])

    def parameters(self) -> list[torch.nn.Parameter]:
        """Trainable parameters."""
        return [p for p in self.model.parameters() if p.requires_grad]

    def way(self, length: int) -> Way:
        """Return how a sequence of this length is computed. UsageError if it cannot be."""
        window = self.trunk.limits.window
        if self.ways[0].layout == "padded" or window is None or length <= window:
            return self.ways[0]
        if len(self.ways) == 1:
            raise UsageError(
                f"a sequence of {length} tokens is longer than the model's attention window of "
                f"{window}, and longer ones cannot be computed exactly: lower the length limits"
            )
        return self.ways[1]

    def check_length(self, length: int) -> None:
        """Raise UsageError if no way computes a sequence of this length exactly."""
        self.way(length)
        self.trunk.limits.group(length)

    def layout(self, sequences: Sequence[PromptCompletion]) -> Layout:
        """Arrange sequences as one call of the model.

        No sequences give a call of one token without log-probs: with sharded weights every rank
        must take part in every call. Raises ValueError for sequences that must not share a call.
        """
        sequences = sequences or [PromptCompletion([0], [])]
        groups = {self.trunk.limits.group(len(s)) for s in sequences}
        if not self.trunk.limits.compatible(groups):
            raise ValueError(
                "these sequences must not share a call, because rotary frequencies depend on its "
                "longest one: cut them by `micro_batches`"
            )
        return self._arrange(sequences, self.way(max(map(len, sequences))))

    def _arrange(self, sequences: Sequence[PromptCompletion], way: Way) -> Layout:
        if way.layout == "tree":
            # Frequencies that depend on the length are those of the last token.
            layout = tree_layout(sequences, whole=self.trunk.limits.rope_switch is not None)
        else:
            layout = padded_layout(sequences)
        layout.attention = way.attention
        return layout.to(self.device)

    def micro_batches(
        self, sequences: Sequence[PromptCompletion], ranks: Ranks | None = None
    ) -> list[list[int]]:
        """Indices of the sequences in micro-batches of at most `compute.micro_batch_tokens` tokens.

        With sharded weights every rank makes the same number of calls, so a rank with fewer
        micro-batches adds empty ones.
        """

        def kind(length: int) -> tuple[int, bool]:
            return self.trunk.limits.group(length), self.way(length).layout == "padded"

        cuts = micro_batches(sequences, self.compute.micro_batch_tokens, kind)
        if ranks and ranks.sharded:
            cuts += [[] for _ in range(max(ranks.gather(len(cuts))) - len(cuts))]
        return cuts

    def logprobs(
        self, layout: Layout, *, temperature: float = 1.0, entropy: bool = False
    ) -> tuple[Tensor, Tensor]:
        """Log-probs `[N]` of the completion tokens and entropies `[N]` in nats, with gradient.

        Entropies are zeros without `entropy`.
        """
        return self.module(layout, temperature, entropy)

    def divergences(
        self,
        layout: Layout,
        teacher: Policy,
        *,
        kind: DivergenceKind = "forward",
        temperature: float = 1.0,
    ) -> tuple[Tensor, Tensor]:
        """Log-probs `[N]`, and divergences `[N]` from the teacher's next-token distributions.

        Both have a gradient. The temperature applies to the divergences only.
        """
        return self.module(layout, temperature, False, teacher.module, kind)

    def all_logprobs(
        self,
        sequences: Sequence[PromptCompletion],
        *,
        temperature: float = 1.0,
        ranks: Ranks | None = None,
    ) -> list[Tensor]:
        """Log-probs of each sequence's completion on the CPU, without gradient, by all ranks."""
        indices = list(range(len(sequences)))
        own = ranks.deal(indices, [sequences[i] for i in indices]) if ranks else indices
        by_index: dict[int, Tensor] = {}
        with torch.no_grad(), self.without_dropout():
            for cut in self.micro_batches([sequences[i] for i in own], ranks):
                layout = self.layout([sequences[own[i]] for i in cut])
                values = self.logprobs(layout, temperature=temperature)[0].cpu()
                row = layout.row.cpu()
                by_index |= {own[i]: values[row == k] for k, i in enumerate(cut)}
        for part in ranks.gather(by_index) if ranks else []:
            by_index |= part
        return [by_index[i] for i in indices]

    @contextlib.contextmanager
    def without_dropout(self) -> Iterator[None]:
        """Compute without dropout: log-probs that are compared must not depend on chance."""
        training = {module for module in self.model.modules() if module.training}
        self.model.eval()
        try:
            yield
        finally:
            for module in training:
                module.training = True

    def without_adapters(self) -> Any:
        """Return a context in which the model is the one that training started from."""
        return self.model.disable_adapter()

    def release_memory(self) -> None:
        """Return freed CPU memory to the system; call it after a micro-batch and after a step."""
        self.slabs.start_new()
        trim_heap(self.device)


def keep_dropout_only(model: Any) -> None:
    """Put modules without dropout into evaluation mode.

    In training mode some architectures change what they compute in other ways: PhiMoE adds noise to
    its router and draws experts by chance, Gemma 3n overwrites weights.
    """
    for module in model.modules():
        rates = [v for k, v in vars(module).items() if "dropout" in k and isinstance(v, float)]
        if not isinstance(module, torch.nn.modules.dropout._DropoutNd) and not any(rates):
            module.training = False


class Scorer(torch.nn.Module):
    """The whole computation in one `forward`, so that FSDP gathers sharded weights around it."""

    def __init__(self, model: Any, policy: Policy) -> None:
        super().__init__()
        self.model = model
        self.policy, self.sharded = policy, False

    def hidden(self, layout: Layout) -> Tensor:
        """Hidden states `[N, D]` that predict the completion tokens."""
        policy, extra = self.policy, {}
        default = attention.NAME if layout.families else policy.trunk.own_attention
        policy.trunk.use(layout.attention or default)
        if layout.families:
            layout.index = layout.index or attention.tree_index(layout)
            layout.index.slabs = policy.slabs
            layout.index.regather = not policy.compute.gradient_checkpointing
            extra["tree"] = layout.index
        with torch.autocast(layout.input_ids.device.type, torch.bfloat16, enabled=policy.autocast):
            states = policy.trunk.states(layout, **extra)
        return states.reshape(-1, states.shape[-1]).index_select(0, layout.source)

    def states(self, layout: Layout) -> Tensor:
        """Hidden states `[N, D]` in the precision of the logits."""
        policy = self.policy
        low = policy.autocast and not policy.compute.fp32_head
        return self.hidden(layout).to(torch.bfloat16 if low else policy.head.weight.dtype)

    def states_for(self, layout: Layout) -> Tensor:
        """Hidden states `[N, D]` in the order of another policy's layout."""
        policy, sequences = self.policy, layout.sequences
        groups: dict[int, list[int]] = {}
        for i, sequence in enumerate(sequences):
            groups.setdefault(policy.trunk.limits.group(len(sequence)), []).append(i)
        if policy.trunk.limits.compatible(groups):
            own = policy.layout(sequences)
            return self.states(own)[own.permutation(layout)]
        rows: dict[int, Tensor] = {}
        for indices in groups.values():
            own = policy.layout([sequences[i] for i in indices])
            states = self.states(own)
            rows |= {i: states[own.row == k] for k, i in enumerate(indices)}
        return torch.cat([rows[i] for i in layout.order])

    def forward(
        self,
        layout: Layout,
        temperature: float,
        entropy: bool,
        teacher: Scorer | None = None,
        kind: DivergenceKind = "forward",
    ) -> tuple[Tensor, Tensor]:
        """Log-probs and entropies; with a teacher log-probs and divergences."""
        hidden = self.states(layout)
        head, chunk = self.policy.head, self.policy.compute.logprob_chunk
        low = hidden.dtype == torch.bfloat16
        # Tiled heads multiply in the dtype of the states; the model's own code needs autocast.
        with torch.autocast(hidden.device.type, torch.bfloat16, enabled=low and not head.tiled):
            if teacher is None:
                return head.logprobs(
                    hidden,
                    layout.target,
                    temperature=temperature,
                    chunk=chunk,
                    entropy=entropy,
                    in_place=not self.sharded,
                )
            with torch.no_grad():
                teacher_hidden = teacher.states_for(layout)
            divergences = head.divergences(
                hidden,
                teacher.policy.head,
                teacher_hidden,
                kind=kind,
                temperature=temperature,
                chunk=chunk,
            )
            return head.logprobs(hidden, layout.target, chunk=chunk)[0], divergences
