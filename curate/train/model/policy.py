"""A causal language model as a trainer holds it: fp32 weights, bf16 products where they are faster.

`policy.logprobs(policy.layout(sequences))` gives the log-probs of the completion tokens of one
micro-batch, which is all that a loss needs. Logits of a whole sequence never exist.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from curate.engines.precision import fast_bf16
from curate.train.config import ModelConfig
from curate.train.losses import DivergenceKind
from curate.train.model import attention
from curate.train.model.devices import pick_device
from curate.train.model.layers import use_lean_layers
from curate.train.model.layout import (
    Layout,
    PromptCompletion,
    micro_batches,
    padded_layout,
    tree_layout,
)
from curate.train.model.logprobs import token_divergence, token_logprobs
from curate.train.model.lora import add_lora, base
from curate.train.model.slabs import Slabs, trim_heap
from curate.train.ranks import Ranks


class Policy:
    """A model, how it is computed, and its log-probs. `module` is the part that FSDP wraps."""

    def __init__(self, model: Any, compute: ModelConfig, *, device: str | None = None) -> None:
        self.compute = compute
        self.device = torch.device(device or pick_device(compute.device))
        self.layout_kind = compute.layout if can_tree(model) else "padded"
        self.autocast = compute.precision == "bf16" or (
            compute.precision == "auto" and fast_bf16(self.device)
        )
        self.slabs = Slabs()
        if compute.lora:
            model = add_lora(model, compute.lora)
        tree = self.layout_kind == "tree"
        base(model).set_attn_implementation(attention.register() if tree else "sdpa")
        if compute.gradient_checkpointing:
            model.enable_input_require_grads()
            model.gradient_checkpointing_enable(
                gradient_checkpointing_kwargs={"use_reentrant": False}
            )
        use_lean_layers(model, torch.bfloat16 if self.autocast else None, self.slabs)
        self.model = model.to(self.device)
        self.module = Scorer(self.model, self.autocast, compute, self.slabs)

    @property
    def vocabulary(self) -> int:
        return int(base(self.model).get_output_embeddings().weight.shape[0])

    def parameters(self) -> list[torch.nn.Parameter]:
        """Trainable parameters."""
        return [p for p in self.model.parameters() if p.requires_grad]

    def layout(self, sequences: Sequence[PromptCompletion]) -> Layout:
        """Arrange sequences as one call of the model.

        No sequences give a call of one token without log-probs: with sharded weights every rank
        must take part in every call.
        """
        sequences = sequences or [PromptCompletion([0], [])]
        arrange = tree_layout if self.layout_kind == "tree" else padded_layout
        return arrange(sequences).to(self.device)

    def micro_batches(
        self, sequences: Sequence[PromptCompletion], ranks: Ranks | None = None
    ) -> list[list[int]]:
        """Indices of the sequences in micro-batches of at most `compute.micro_batch_tokens` tokens.

        With sharded weights every rank makes the same number of calls, so a rank with fewer
        micro-batches adds empty ones.
        """
        cuts = micro_batches(sequences, self.compute.micro_batch_tokens)
        if ranks and ranks.sharded:
            cuts += [[] for _ in range(max(ranks.gather(len(cuts))) - len(cuts))]
        return cuts

    def logprobs(
        self, layout: Layout, *, temperature: float = 1.0, entropy: bool = False
    ) -> tuple[Tensor, Tensor]:
        """Log-probs `[N]` of the completion tokens with gradient, and entropies `[N]` in nats.

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
        own = ranks.mine(indices) if ranks else indices
        by_index: dict[int, Tensor] = {}
        with torch.no_grad():
            for cut in self.micro_batches([sequences[i] for i in own], ranks):
                layout = self.layout([sequences[own[i]] for i in cut])
                values = self.logprobs(layout, temperature=temperature)[0].cpu()
                row = layout.row.cpu()
                by_index |= {own[i]: values[row == k] for k, i in enumerate(cut)}
        for part in ranks.gather(by_index) if ranks else []:
            by_index |= part
        return [by_index[i] for i in indices]

    def without_adapters(self) -> Any:
        """Return a context in which the model is the one that training started from."""
        return self.model.disable_adapter()

    def release_memory(self) -> None:
        """Return freed CPU memory to the system; call it after a micro-batch and after a step."""
        self.slabs.start_new()
        trim_heap(self.device)


class Scorer(torch.nn.Module):
    """The whole computation in one `forward`, so that FSDP gathers sharded weights around it."""

    def __init__(self, model: Any, autocast: bool, compute: ModelConfig, slabs: Slabs) -> None:
        super().__init__()
        self.model = model
        self.autocast, self.compute, self.slabs, self.sharded = autocast, compute, slabs, False
        config = base(model).config
        self.softcap = getattr(config, "final_logit_softcapping", None)
        # Cohere multiplies the logits, Granite divides them.
        self.scale = float(getattr(config, "logit_scale", None) or 1.0) / float(
            getattr(config, "logits_scaling", None) or 1.0
        )

    def hidden(self, layout: Layout) -> Tensor:
        """Hidden states `[N, D]` that predict the completion tokens."""
        extra: dict[str, Any] = {"attention_mask": layout.attention_mask}
        if layout.families:
            layout.index = layout.index or attention.tree_index(layout)
            layout.index.slabs = self.slabs
            layout.index.regather = not self.compute.gradient_checkpointing
            extra = {"tree": layout.index}
        with torch.autocast(layout.input_ids.device.type, torch.bfloat16, enabled=self.autocast):
            out = base(self.model).base_model(
                input_ids=layout.input_ids,
                position_ids=layout.position_ids,
                use_cache=False,
                **extra,
            )
        states = out.last_hidden_state
        return states.reshape(-1, states.shape[-1]).index_select(0, layout.source)

    def states(self, layout: Layout) -> tuple[Tensor, Tensor]:
        """Hidden states `[N, D]` in the precision of the logits, and the output matrix `[V, D]`."""
        hidden, weight = self.hidden(layout), base(self.model).get_output_embeddings().weight
        low = self.autocast and not self.compute.fp32_head
        return hidden.to(torch.bfloat16 if low else weight.dtype), weight

    def forward(
        self,
        layout: Layout,
        temperature: float,
        entropy: bool,
        teacher: Scorer | None = None,
        kind: DivergenceKind = "forward",
    ) -> tuple[Tensor, Tensor]:
        """Log-probs and entropies; with a teacher log-probs and divergences."""
        hidden, weight = self.states(layout)
        head = base(self.model).get_output_embeddings()
        chunk = self.compute.logprob_chunk
        if teacher is not None:
            with torch.no_grad():
                teacher_hidden, teacher_weight = teacher.states(layout)
            divergences = token_divergence(
                hidden,
                weight.to(hidden.dtype),
                teacher_hidden,
                teacher_weight.to(teacher_hidden.dtype),
                kind=kind,
                temperature=temperature,
                chunk=chunk,
            )
            return token_logprobs(hidden, weight, layout.target, chunk=chunk)[0], divergences
        return token_logprobs(
            hidden,
            weight,
            layout.target,
            temperature=temperature,
            scale=self.scale,
            softcap=self.softcap,
            bias=getattr(head, "bias", None),
            chunk=chunk,
            entropy=entropy,
            in_place=not self.sharded,
        )


def can_tree(model: Any) -> bool:
    """Whether the model's attention can be replaced, and every layer is plain causal attention."""
    kinds = set(getattr(model.config, "layer_types", None) or ["full_attention"])
    sliding = getattr(model.config, "sliding_window", None) and getattr(
        model.config, "use_sliding_window", True
    )
    return (
        bool(getattr(model, "_supports_attention_backend", False))
        and kinds == {"full_attention"}
        and not sliding
    )
