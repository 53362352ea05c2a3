"""A causal language model as a trainer holds it: fp32 weights, computed in bf16 where that is faster, never any logits.

`Policy(layout)` gives the log-probs of the completion tokens of a micro-batch, and that is all a loss needs.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from curate.engines.precision import fast_bf16, weights_dtype
from curate.errors import CurateError, UsageError
from curate.train.config import LoraConfig, ModelConfig
from curate.train.model.layers import make_lean
from curate.train.model.layout import Layout, Sequence_, micro_batches, padded_layout, tree_layout

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from curate.train.ranks import World


class Policy:
    """A model, how it is computed, and its log-probs. `module` is what an optimizer or FSDP takes."""

    def __init__(self, model: Any, compute: ModelConfig, *, device: str | None = None) -> None:
        import torch

        self.compute = compute
        self.device = torch.device(device or pick_device(compute.device))
        self.layout = compute.layout if can_tree(model) else "padded"
        self.autocast = compute.precision == "bf16" or (
            compute.precision == "auto" and fast_bf16(self.device)
        )
        if compute.lora:
            model = add_lora(model, compute.lora)
        base(model).set_attn_implementation(_tree_name() if self.layout == "tree" else "sdpa")
        if compute.gradient_checkpointing:
            model.enable_input_require_grads()
            model.gradient_checkpointing_enable(
                gradient_checkpointing_kwargs={"use_reentrant": False}
            )
        make_lean(model, torch.bfloat16 if self.autocast else None)
        self.model = model.to(self.device)
        self.module = _scorer(self.model, self.autocast, compute)

    @property
    def vocabulary(self) -> int:
        return int(base(self.model).get_output_embeddings().weight.shape[0])

    def parameters(self) -> list[torch.nn.Parameter]:
        """Those that are trained."""
        return [p for p in self.model.parameters() if p.requires_grad]

    def lay(self, sequences: Sequence[Sequence_]) -> Layout:
        """The sequences as one call of the model; of no sequences, one token whose log-prob is not asked."""
        if not sequences:
            sequences = [Sequence_([0], [])]
        made = tree_layout(sequences) if self.layout == "tree" else padded_layout(sequences)
        return made.to(self.device)

    def cut(self, sequences: Sequence[Sequence_], world: World | None = None) -> list[list[int]]:
        """Indices of the sequences in micro-batches.

        With sharded weights every rank must make as many calls of the model: those that run out add empty ones.
        """
        cuts = micro_batches(sequences, self.compute.micro_batch_tokens)
        if world and world.sharded:
            cuts += [[] for _ in range(max(world.gather(len(cuts))) - len(cuts))]
        return cuts

    def logprobs(
        self, layout: Layout, *, temperature: float = 1.0, entropy: bool = False
    ) -> tuple[Tensor, Tensor]:
        """`[N]` log-probs of the completion tokens with gradient, and `[N]` entropies (zeros if not asked)."""
        return self.module(layout, temperature, entropy)

    def divergences(
        self, layout: Layout, teacher: Policy, *, kind: str = "forward", temperature: float = 1.0
    ) -> tuple[Tensor, Tensor]:
        """`[N]` log-probs and `[N]` divergences from the teacher's next-token distributions, both with gradient."""
        return self.module(layout, temperature, False, teacher.module, kind)

    def all_logprobs(
        self,
        sequences: Sequence[Sequence_],
        *,
        temperature: float = 1.0,
        world: World | None = None,
    ) -> list[Tensor]:
        """Log-probs of each sequence's completion, without gradient, on the CPU. Ranks share the work."""
        import torch

        indices = list(range(len(sequences)))
        own = world.mine(indices) if world else indices
        found: dict[int, Tensor] = {}
        with torch.no_grad():
            for cut in self.cut([sequences[i] for i in own], world):
                layout = self.lay([sequences[own[i]] for i in cut])
                values = self.logprobs(layout, temperature=temperature)[0].cpu()
                row = layout.row.cpu()
                found |= {own[i]: values[row == k] for k, i in enumerate(cut)}
        for part in world.gather(found) if world else []:
            found |= part
        return [found[i] for i in indices]

    def without_adapters(self) -> Any:
        """A context in which the adapters are switched off: the model that training started from."""
        return self.model.disable_adapter()


@cache
def _scorer_class() -> Any:
    import torch

    from curate.train.model.attention import tree_index
    from curate.train.model.logprobs import token_divergence, token_logprobs

    class Scorer(torch.nn.Module):
        """The whole computation in one `forward`, so that sharded weights are gathered around all of it."""

        def __init__(self, model: Any, autocast: bool, compute: ModelConfig) -> None:
            super().__init__()
            self.model = model
            self.autocast, self.compute, self.sharded = autocast, compute, False
            config = base(model).config
            self.softcap = getattr(config, "final_logit_softcapping", None)
            # Cohere multiplies the logits, Granite divides them.
            self.scale = float(getattr(config, "logit_scale", None) or 1.0) / float(
                getattr(config, "logits_scaling", None) or 1.0
            )

        def hidden(self, layout: Layout) -> Tensor:
            extra: dict[str, Any] = {"attention_mask": layout.attention_mask}
            if layout.families:
                layout.index = layout.index or tree_index(layout)
                layout.index.again = not self.compute.gradient_checkpointing
                extra = {"tree": layout.index}
            with torch.autocast(
                layout.input_ids.device.type, torch.bfloat16, enabled=self.autocast
            ):
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
            teacher: Any = None,
            kind: str = "forward",
        ) -> tuple[Tensor, Tensor]:
            """Log-probs and entropies; with a teacher log-probs and divergences (only these at `temperature`)."""
            hidden, weight = self.states(layout)
            head = base(self.model).get_output_embeddings()
            if teacher is not None:
                with torch.no_grad():
                    known, by = teacher.states(layout)
                chunk, low = self.compute.logprob_chunk, weight.to(hidden.dtype)
                apart = token_divergence(
                    hidden,
                    low,
                    known,
                    by.to(known.dtype),
                    kind=kind,
                    temperature=temperature,
                    chunk=chunk,
                )
                return token_logprobs(hidden, weight, layout.target, chunk=chunk)[0], apart
            return token_logprobs(
                hidden,
                weight,
                layout.target,
                temperature=temperature,
                scale=self.scale,
                softcap=self.softcap,
                bias=getattr(head, "bias", None),
                chunk=self.compute.logprob_chunk,
                entropy=entropy,
                own=not self.sharded,
            )

    return Scorer


def _scorer(model: Any, autocast: bool, compute: ModelConfig) -> Any:
    return _scorer_class()(model, autocast, compute)


def _tree_name() -> str:
    from curate.train.model.attention import register

    return register()


def base(model: Any) -> Any:
    """The transformers model inside adapters, or itself."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def can_tree(model: Any) -> bool:
    """Whether the attention of this model can be replaced, and is plain causal attention in every layer."""
    kinds = set(getattr(model.config, "layer_types", None) or ["full_attention"])
    sliding = getattr(model.config, "sliding_window", None) and getattr(
        model.config, "use_sliding_window", True
    )
    return (
        bool(getattr(model, "_supports_attention_backend", False))
        and kinds == {"full_attention"}
        and not sliding
    )


def pick_device(wanted: str = "auto") -> str:
    """`auto`: this rank's GPU where there is one, else the CPU."""
    import os

    import torch

    if wanted != "auto":
        return wanted
    return f"cuda:{os.environ.get('LOCAL_RANK', 0)}" if torch.cuda.is_available() else "cpu"


def load_policy(
    path: str | Path, compute: ModelConfig, *, device: str | None = None
) -> tuple[Policy, Any]:
    """The model of a directory in Hugging Face format with fp32 weights, and its tokenizer."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    path = Path(path)
    if not (path / "config.json").exists():
        raise UsageError(
            f"no model at {path}: give a directory in Hugging Face format (with config.json and weights)"
        )
    try:
        with quiet():
            model = AutoModelForCausalLM.from_pretrained(
                path, dtype=torch.float32, local_files_only=True
            )
            tokenizer = AutoTokenizer.from_pretrained(path, local_files_only=True)
    except (OSError, ValueError) as error:
        raise UsageError(f"the model at {path} could not be loaded: {error}") from error
    if tokenizer.eos_token_id is None:
        raise UsageError(
            f"the tokenizer at {path} names no end token, so no completion could end: set eos_token"
        )
    model.config.use_cache = False
    model.train()
    return Policy(model, compute, device=device), tokenizer


def seed_everything(seed: int) -> None:
    """Seed what training draws from: adapters' first weights, and dropout."""
    import torch

    torch.manual_seed(seed)


def stored_dtype(path: str | Path) -> str:
    """The dtype to store trained weights in: that of the model in `path`, with bfloat16 for other 16-bit formats."""
    found = weights_dtype(path)
    return found if found == "float32" else "bfloat16"


def weights(policy: Policy, dtype: Any = None) -> dict[str, Tensor]:
    """All weights by their names in the model, on the CPU, adapters merged. Sharded: every rank must call."""
    model, config = policy.model, policy.compute
    state: dict[str, Any]
    if any(hasattr(p, "full_tensor") for p in model.parameters()):
        from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

        state = dict(
            get_model_state_dict(
                model, options=StateDictOptions(full_state_dict=True, cpu_offload=True)
            )
        )
    else:
        state = model.state_dict()
    if config.lora:
        state = merged(model, state)
    return {
        k: v.detach().to("cpu", dtype if v.is_floating_point() and dtype else v.dtype)
        for k, v in state.items()
    }


def untied(policy: Policy, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights as a checkpoint holds them: of those that share a tensor only one."""
    tied = set(getattr(base(policy.model), "all_tied_weights_keys", None) or ())
    return {name: value for name, value in state.items() if name not in tied}


def trained_state(policy: Policy, optimizer: Any) -> dict[str, Any]:
    """What resuming needs beside the model: the optimizer, and adapters as they are. Every rank must call."""
    names = {id(p): name for name, p in policy.model.named_parameters()}

    def whole(value: Any) -> Any:
        value = value.full_tensor() if hasattr(value, "full_tensor") else value
        return value.detach().cpu() if hasattr(value, "detach") else value

    state = {
        names[id(p)]: {key: whole(value) for key, value in optimizer.state[p].items()}
        for group in optimizer.param_groups
        for p in group["params"]
        if p in optimizer.state
    }
    lora = policy.compute.lora is not None
    adapters = {n: whole(p) for n, p in policy.model.named_parameters() if lora and p.requires_grad}
    return {"optimizer": state, "adapters": adapters}


def restore(policy: Policy, optimizer: Any, state: dict[str, Any]) -> None:
    """Put back what `trained_state` took, also onto another number of ranks."""
    import torch

    def placed(value: Any, like: Any) -> Any:
        if not isinstance(value, torch.Tensor):
            return value
        if (
            value.shape != like.shape
        ):  # the count of steps, which fused AdamW wants beside the weights
            return value.to(like.device)
        if hasattr(like, "device_mesh"):
            from torch.distributed.tensor import distribute_tensor

            return distribute_tensor(value.to(like.device), like.device_mesh, like.placements)
        return value.to(like.device)

    with torch.no_grad():
        for name, parameter in policy.model.named_parameters():
            if name in state["adapters"]:
                parameter.copy_(placed(state["adapters"][name], parameter))
            if name in state["optimizer"]:
                optimizer.state[parameter] = {
                    k: placed(v, parameter) for k, v in state["optimizer"][name].items()
                }


def merged(model: Any, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The weights of a peft model with each adapter added to what it adapts: W + scale B A. The model is left alone."""
    plain: dict[str, Tensor] = {}
    for name, value in state.items():
        if ".lora_" not in name:
            plain[name.removeprefix("base_model.model.").replace(".base_layer.", ".")] = value
    for name, layer in model.named_modules():
        if hasattr(layer, "lora_A") and f"{name}.lora_A.default.weight" in state:
            a, b = (
                state[f"{name}.{part}.default.weight"].detach() for part in ("lora_A", "lora_B")
            )
            key = name.removeprefix("base_model.model.") + ".weight"
            change = (b @ a) * layer.scaling["default"]
            change = change.t() if layer.fan_in_fan_out else change
            plain[key] = plain[key] + change.to(plain[key].device)
    return plain


def write_model(
    policy: Policy, tokenizer: Any, path: Path, dtype: str, state: dict[str, Tensor] | None = None
) -> None:
    """The model as `transformers` and vLLM load it: config, safetensors, tokenizer."""
    import torch

    kind = getattr(torch, dtype)
    model = base(policy.model)
    state = weights(policy, kind) if state is None else {k: v.to(kind) for k, v in state.items()}
    before, cache = model.config.dtype, model.config.use_cache
    try:
        model.config.dtype, model.config.use_cache = kind, True
        with quiet():
            model.save_pretrained(path, state_dict=state)
            tokenizer.save_pretrained(path)
    finally:
        model.config.dtype, model.config.use_cache = before, cache


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """transformers without its own progress bars: they would tear ours."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def add_lora(model: Any, lora: LoraConfig) -> Any:
    """The model with low-rank adapters; everything else is frozen."""
    try:
        from peft import LoraConfig as PeftConfig
        from peft import get_peft_model
    except ImportError as error:
        raise UsageError("lora needs peft: pip install 'curate[train]'") from error
    return get_peft_model(
        model,
        PeftConfig(
            r=lora.rank,
            lora_alpha=lora.alpha,
            lora_dropout=lora.dropout,
            target_modules=lora.targets,
            task_type="CAUSAL_LM",
        ),
    )


@contextlib.contextmanager
def memory_errors(step: int) -> Iterator[None]:
    """Out of memory as one message that says which setting to lower."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        text = str(error).lower()
        known = (
            isinstance(error, MemoryError)
            or "out of memory" in text
            or "can't allocate memory" in text
        )
        if not known:
            raise
        raise CurateError(
            f"out of memory at step {step}: lower compute.micro_batch_tokens (then compute.logprob_chunk), or set "
            "compute.gradient_checkpointing=true; the last checkpoint is intact"
        ) from error
