"""A probe when a model is loaded: our log-probs against those of transformers, on random tokens.

`model(input_ids).logits` of one sequence per call, with eager attention, defines the model. The
probe computes a few short sequences with shared prefixes that way, and then in our ways, fastest
first. The first that agrees is used. If none does, training is refused: an optimizer would silently
follow wrong gradients. Sliding windows, and the length at which `longrope` changes its frequencies,
are shrunk for the probe, so that it crosses them.
"""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from curate.errors import UsageError
from curate.train.model.devices import is_out_of_memory
from curate.train.model.head import OutputHead
from curate.train.model.layout import PromptCompletion, padded_layout
from curate.train.model.trunk import Trunk, Way, short_rope, short_windows

# Nats. fp32 rounding stays below 1e-4 in the models tried; the faults it looks for are above 1e-2.
TOLERANCE = 1e-3
SHORT_WINDOW = 8
ATTEMPTS = 2  # a near tie of two experts can be decided either way: draw other tokens


def probe_sequences(model: Any, seed: int) -> list[PromptCompletion]:
    """Return two prompts with a common prefix and two completions each, of at most 15 tokens."""
    rng = random.Random(seed)
    config = model.config
    # Tokens with a special meaning to the model, such as image placeholders, are left out.
    special = {
        value
        for part in (config, config.get_text_config())
        for name, value in part.to_dict().items()
        if name.endswith(("_token_id", "_token_index", "_index")) and isinstance(value, int)
    }
    # Some models embed tokens that they cannot predict: Llama 3.2's placeholder of an image.
    embeddings = model.get_input_embeddings(), model.get_output_embeddings()
    vocabulary = min(part.weight.shape[0] for part in embeddings)
    usable = [t for t in range(min(3, vocabulary - 1), vocabulary) if t not in special]

    def draw(count: int) -> list[int]:
        return rng.choices(usable, k=count)

    head = draw(8)
    prompts = [head + draw(1), head + draw(2)]
    return [PromptCompletion(p, draw(n)) for p in prompts for n in (3, 5)]


def plain_logits(model: Any, trunk: Trunk, ids: Tensor) -> Tensor:
    """Return logits `[L, V]` of one sequence (`[1, L]`) from the unmodified model."""
    extra = {"token_type_ids": torch.zeros_like(ids)} if trunk.token_types else {}
    logits: Tensor = model(input_ids=ids, use_cache=False, **extra).logits[0]
    return logits


def plain_logprobs(model: Any, trunk: Trunk, sequences: Sequence[PromptCompletion]) -> list[Tensor]:
    """Return log-probs of the completions from `model(input_ids).logits`, one sequence per call."""
    device = model.get_input_embeddings().weight.device
    logprobs = []
    for sequence in sequences:
        ids = torch.tensor([[*sequence.prompt, *sequence.completion]], device=device)
        logits = plain_logits(model, trunk, ids).double()
        start = len(sequence.prompt)
        chosen = torch.log_softmax(logits[start - 1 : -1], -1).gather(1, ids[0, start:, None])
        logprobs.append(chosen[:, 0])
    return logprobs


class Probe:
    """Outputs of transformers for a model, computed before anything in the model is replaced."""

    def __init__(self, model: Any, trunk: Trunk, head: OutputHead) -> None:
        self.model, self.trunk, self.head = model, trunk, head
        # One probe crosses the window; for the tree, another stays inside it.
        self.windowed = trunk.limits.window is not None
        self.cases: list[tuple[list[PromptCompletion], list[Tensor], list[Tensor]]] = []
        training, before = model.training, model.config._attn_implementation
        model.eval()
        with torch.no_grad():
            with contextlib.suppress(ValueError, UsageError):
                trunk.use("eager")
            leaks = []
            for attempt in range(ATTEMPTS):
                sequences = probe_sequences(model, attempt)
                inside = plain_logprobs(model, trunk, sequences)
                leaks.append(self._leak(sequences[-1], inside[-1]))
                across = inside
                if self.windowed:
                    with short_windows(model, SHORT_WINDOW):
                        across = plain_logprobs(model, trunk, sequences)
                self.cases.append((sequences, inside, across))
            if min(leaks) > TOLERANCE:
                raise UsageError(
                    f"this model ({_kind(model)}) cannot be trained to predict the next token: its "
                    f"log-probs depend on the tokens after it (by {min(leaks):.2g} nats). Use a "
                    "causal model; one of BERT's kind is causal with is_decoder in its config.json"
                )
            self.beyond: list[Tensor] = []  # with the frequencies of long sequences
            if trunk.limits.rope_switch is not None:
                with short_rope(model, SHORT_WINDOW):
                    self.beyond = plain_logprobs(model, trunk, self.cases[0][0])
            head.agrees = self._tiled_head_agrees()
            trunk.use(before)
        model.train(training)

    def _leak(self, sequence: PromptCompletion, logprobs: Tensor) -> float:
        """By how many nats the log-prob of a token depends on the tokens after the next one."""
        first = PromptCompletion(sequence.prompt, sequence.completion[:1])
        return _difference(plain_logprobs(self.model, self.trunk, [first]), [logprobs[:1]])

    def _tiled_head_agrees(self) -> bool:
        """Whether matrix, bias, scale and softcap are the whole head.

        Raises UsageError if they are not, and the model's own code does not give its logits either.
        """
        head, sequence = self.head, self.cases[0][0][0]
        layout = padded_layout([sequence]).to(head.weight.device)
        states = self.trunk.states(layout)[0]
        expected = plain_logits(self.model, self.trunk, layout.input_ids)

        def same(logits: Tensor, wanted: Tensor) -> bool:
            return float((logits - wanted).abs().max()) <= 1e-4 * float(wanted.abs().max())

        tiled = head.tiled and same(head.logits(states), expected)
        try:
            own = same(head.own_logits(states), expected)
        except Exception as error:  # some models call parts of their trunk: only `tiled` is known
            if is_out_of_memory(error):
                raise
            own = False
        if tiled and own:
            # A softcap shows in large logits only.
            tiled = same(head.logits(64 * states), head.own_logits(64 * states))
        if not tiled and not own:
            raise UsageError(_refusal(self.model, "its head cannot be computed on its own"))
        return tiled

    def choose(
        self, ways: Sequence[Way], compute: Callable[[Way, list[PromptCompletion]], list[Tensor]]
    ) -> list[Way]:
        """Return the first way that agrees, and a padded one for sequences beyond the window.

        `compute` returns our log-probs of the completions. Raises UsageError if no way agrees.
        """
        reasons = []
        chosen: list[Way] = []
        for way in ways:
            if way.layout == "tree":
                reason = self._reason(way, compute, inside=True)
            else:
                with short_windows(self.model, SHORT_WINDOW):
                    reason = self._reason(way, compute, inside=False)
            if not reason:
                chosen.append(way)
                if way.layout == "padded" or not self.windowed:
                    return chosen
            else:
                reasons.append(f"{way}: {reason}")
        if chosen:  # a tree, and nothing for sequences beyond the window
            return chosen
        differences = "; ".join(reasons)
        raise UsageError(
            _refusal(self.model, f"our log-probs disagree with transformers' ({differences})")
        )

    def _reason(
        self,
        way: Way,
        compute: Callable[[Way, list[PromptCompletion]], list[Tensor]],
        inside: bool,
    ) -> str:
        """Return why a way is wrong, or an empty string."""
        reason = ""
        for sequences, within, across in self.cases:
            try:
                values = compute(way, sequences)
            except Exception as error:  # any error means that this way does not work for this model
                if is_out_of_memory(error):  # says nothing about the model
                    raise
                return _first_line(error)
            difference = _difference(values, within if inside else across)
            if difference <= TOLERANCE:
                break
            reason = f"log-probs differ by up to {difference:.2g} nats"
        else:
            return reason
        if self.beyond:
            with short_rope(self.model, SHORT_WINDOW):
                difference = _difference(compute(way, self.cases[0][0]), self.beyond)
            if difference > TOLERANCE:
                return f"beyond the switch of longrope, log-probs differ by {difference:.2g} nats"
        return ""


def _difference(values: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    """Return the largest absolute difference in nats; infinity for nan."""
    ours = torch.cat([v.double().cpu() for v in values])
    theirs = torch.cat([v.double().cpu() for v in expected])
    difference = float((ours - theirs).abs().max())
    return difference if difference == difference else float("inf")


@contextlib.contextmanager
def refusals(model: Any) -> Iterator[None]:
    """Turn errors of a model that does not work as a causal language model into one message."""
    try:
        yield
    except UsageError:
        raise
    except Exception as error:  # whatever the code of an architecture raises
        if is_out_of_memory(error):
            raise
        reason = f"it cannot be computed as a causal language model ({_first_line(error)})"
        raise UsageError(_refusal(model, reason)) from error


def _first_line(error: Exception) -> str:
    """The first line of a message, or the name of its class."""
    return str(error).strip().split("\n")[0][:160] or type(error).__name__


def _kind(model: Any) -> str:
    return str(getattr(model.config, "model_type", type(model).__name__))


def _refusal(model: Any, reason: str) -> str:
    return (
        f"this model ({_kind(model)}) cannot be trained: {reason}. Use another model, or report "
        "this architecture"
    )
