"""The fallback engine: a plain sampling loop over `transformers`, with continuous batching.

A batch of rows is stepped one token at a time. Rows that ended leave, waiting requests of similar
length take their place, and samples of one prompt share its prefill. Each row has a generator with
its own seed and turns one uniform number into a token by inverse transform sampling, so its text
depends on the other rows of the batch only through the last bits of the logits.

Unlike in `model.generate`, the key-value cache grows in steps instead of being copied for each
token, and log-probs are those of the distribution sampled from, after temperature, top-k and top-p;
at temperature 0 they are the model's own.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from curate.engines.base import EngineConfig, ModelDirectory, cut_at_stop, failed, read_config
from curate.errors import CurateError, UsageError
from curate.records import Completion, Request

# Rows stepped together. With a 135M model two cores gain nothing above 32.
CPU_ROWS, GPU_ROWS = 32, 128
PREFILL_TOKENS = 4096  # prompt tokens (padding included) in one forward pass, to bound its memory
GROWTH = 64  # tokens by which the cache grows
REFILL = 0.25  # share of rows that must be free before new ones enter: each refill copies the cache
DRAWS = 256  # uniform numbers drawn at once per row
PAUSE = 0.001  # seconds between reads of a source that has nothing yet
ATTENTION = {"full_attention", "sliding_attention"}


@dataclass(slots=True)
class Row:
    request: Request
    prompt: list[int]
    limit: int
    generator: Any
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    draws: list[float] = field(default_factory=list)
    ended: str | None = None

    def draw(self) -> float:
        """Return this row's next uniform number in [0, 1); it depends on seed and position only."""
        import torch

        if not self.draws:
            self.draws = torch.rand(DRAWS, generator=self.generator, dtype=torch.float64).tolist()[
                ::-1
            ]
        return self.draws.pop()


class TransformersEngine(ModelDirectory):
    """`config.args`: `rows` (stepped together), `device`; the rest goes to `from_pretrained`."""

    name = "transformers"

    def __init__(self, config: EngineConfig, model_dir: str | Path) -> None:
        super().__init__(config, model_dir)
        import torch

        if config.tensor_parallel_size > 1 or config.replicas > 1:
            raise UsageError(
                "the engine 'transformers' runs one copy on one device: for more, use "
                "engine.name=vllm"
            )
        types = set(read_config(self.model_path).get("layer_types") or ATTENTION)
        if types - ATTENTION:
            raise UsageError(
                "the engine 'transformers' does not support "
                f"{', '.join(sorted(types - ATTENTION))}: use engine.name=vllm"
            )
        options = dict(config.args)
        self.device = torch.device(
            options.pop("device", "cuda" if torch.cuda.is_available() else "cpu")
        )
        self.rows = int(options.pop("rows", CPU_ROWS if self.device.type == "cpu" else GPU_ROWS))
        self.model = self._load(self.model_path, options)

    def _load(self, model_dir: Path, options: dict[str, Any]) -> Any:
        from transformers import AutoModelForCausalLM
        from transformers.utils import logging

        logging.disable_progress_bar()
        try:
            model: Any = AutoModelForCausalLM.from_pretrained(
                model_dir, dtype=self.config.dtype, **options
            )
        except (OSError, ValueError, TypeError) as error:
            raise UsageError(
                f"cannot load the model in '{model_dir}': {str(error).splitlines()[0][:300]}"
            ) from error
        return model.to(device=self.device).eval().requires_grad_(False)

    # --- the contract

    def generate(self, requests: Iterable[Request | None]) -> Iterator[Completion]:
        with self._exclusively():
            yield from self._run(iter(requests))

    def _run(self, source: Iterator[Request | None]) -> Iterator[Completion]:
        window = self.config.in_flight or 4 * self.rows
        waiting: list[Row] = []
        batch = DecodingBatch(self)
        exhausted = False
        while True:
            while not exhausted and len(waiting) + len(batch.rows) < max(window, self.rows):
                try:
                    request = next(source)
                except StopIteration:
                    exhausted = True
                    break
                if request is None:
                    break
                row = self._row(request)
                if isinstance(row, Completion):
                    yield row
                else:
                    waiting.append(row)
            free = self.rows - batch.live
            if waiting and (batch.live == 0 or free >= REFILL * self.rows):
                batch.admit(_like(waiting, free))
            if batch.live:
                yield from (self._completion(row) for row in batch.step())
            elif not waiting and exhausted:
                return
            elif not waiting:
                time.sleep(PAUSE)

    def _row(self, request: Request) -> Row | Completion:
        import torch

        ids, fault = self.prepare(request)
        if fault:
            return failed(request, fault, ids)
        generator = torch.Generator().manual_seed(request.seed % 2**63)
        return Row(
            request, ids, min(request.sampling.max_tokens, self.max_model_len - len(ids)), generator
        )

    def _completion(self, row: Row) -> Completion:
        text, stopped = cut_at_stop(
            self.tokenizer.decode(row.tokens, skip_special_tokens=True), row.request.sampling.stop
        )
        return Completion(
            row.request.request_id,
            text,
            "stop" if stopped or row.ended == "stop" else "length",
            prompt_token_ids=row.prompt,
            token_ids=row.tokens,
            logprobs=row.logprobs if row.request.sampling.logprobs else None,
            prompt_tokens=len(row.prompt),
            completion_tokens=len(row.tokens),
        )

    def update_weights(self, directory: str | Path) -> str:
        directory = Path(directory).resolve()
        self._check_idle()
        self.check_same_architecture(directory)
        fingerprint = copy_weights(self.model, directory)
        self._adopt(directory)
        return fingerprint

    def close(self) -> None:
        self.model = None


def _like(waiting: list[Row], count: int) -> list[Row]:
    """Take the oldest row out of `waiting`, and those nearest to it in length: little padding, none
    starves.
    """
    first = len(waiting[0].prompt)
    order = sorted(range(len(waiting)), key=lambda i: (abs(len(waiting[i].prompt) - first), i))[
        :count
    ]
    taken = [waiting[i] for i in sorted(order)]
    waiting[:] = [row for i, row in enumerate(waiting) if i not in set(order)]
    return taken


class DecodingBatch:
    """Rows stepped together, and their key-value cache, left-padded to one length."""

    def __init__(self, engine: TransformersEngine) -> None:
        self.engine = engine
        self.rows: list[Row] = []
        self.live = 0  # rows not yet ended
        self.cache: Any = None
        self.lengths: Any = None  # [rows] tokens of each row in the cache
        self.logits: Any = None  # [rows, vocabulary] of the next token

    def admit(self, new: list[Row]) -> None:
        """Prefill the prompts of `new`, each distinct one once, and add them to the batch."""
        import torch

        self._drop_ended()
        distinct = list(dict.fromkeys(tuple(row.prompt) for row in new))
        for chunk in _chunks(sorted(distinct, key=len)):
            cache, lengths, logits = self._prefill(chunk)
            members = [row for prompt in chunk for row in new if tuple(row.prompt) == prompt]
            place = {prompt: i for i, prompt in enumerate(chunk)}
            index = torch.tensor(
                [place[tuple(row.prompt)] for row in members], device=self.engine.device
            )
            select(cache, index)
            self._join(cache, lengths[index], logits[index])
            self.rows += members
            self.live += len(members)

    def _prefill(self, prompts: list[tuple[int, ...]]) -> tuple[Any, Any, Any]:
        """Cache, lengths [n] and logits [n, vocabulary] after distinct prompts."""
        import torch

        device, pad = self.engine.device, self.engine.tokenizer.pad_token_id or 0
        longest = max(map(len, prompts))
        ids = torch.tensor([[pad] * (longest - len(p)) + list(p) for p in prompts], device=device)
        lengths = torch.tensor([len(p) for p in prompts], device=device)
        cache = new_cache()
        positions = torch.arange(longest, device=device)[None] - (longest - lengths)[:, None]
        logits = self._forward(ids, positions.clamp(min=0), lengths, longest, cache)
        return cache, lengths, logits

    def _forward(self, ids: Any, positions: Any, lengths: Any, total: int, cache: Any) -> Any:
        """Logits [n, vocabulary] after `ids` [n, t].

        The last `lengths` [n] of the `total` cache positions are real.
        """
        import torch

        mask = torch.arange(total, device=ids.device)[None] >= (total - lengths)[:, None]
        with torch.inference_mode():
            out = self.engine.model(
                input_ids=ids,
                attention_mask=mask.long(),
                position_ids=positions,
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=1,
            )
        return out.logits[:, -1].float()

    def _join(self, cache: Any, lengths: Any, logits: Any) -> None:
        import torch

        if not self.rows:
            self.cache, self.lengths, self.logits = cache, lengths, logits
            return
        join(self.cache, cache)
        self.lengths = torch.cat([self.lengths, lengths])
        self.logits = torch.cat([self.logits, logits])

    def _drop_ended(self) -> None:
        import torch

        live = [i for i, row in enumerate(self.rows) if row.ended is None]
        if len(live) == len(self.rows):
            return
        self.rows = [self.rows[i] for i in live]
        if not live:
            self.cache = self.lengths = self.logits = None
            return
        index = torch.tensor(live, device=self.lengths.device)
        self.lengths, self.logits = self.lengths[index], self.logits[index]
        select(self.cache, index, keep=int(self.lengths.max()))

    def step(self) -> list[Row]:
        """Sample one token for each row and step the model. Returns the rows that ended."""
        import torch

        chosen, logprobs = sample(self.logits, self.rows)
        ended = []
        for row, token, logprob in zip(self.rows, chosen.tolist(), logprobs.tolist()):
            if row.ended is None:
                row.tokens.append(token)
                row.logprobs.append(logprob)
                row.ended = self._end_of(row, token)
                if row.ended:
                    ended.append(row)
        self.live -= len(ended)
        if self.live == 0 or len(self.rows) - self.live >= REFILL * len(self.rows):
            keep = torch.tensor([row.ended is None for row in self.rows], device=chosen.device)
            chosen = chosen[keep]
            self._drop_ended()
        if self.rows:
            total = self.cache.get_seq_length() + 1
            positions = self.lengths[:, None]
            self.lengths = self.lengths + 1
            self.logits = self._forward(chosen[:, None], positions, self.lengths, total, self.cache)
        return ended

    def _end_of(self, row: Row, token: int) -> str | None:
        if token in self.engine.end_token_ids:
            return "stop"
        stops = row.request.sampling.stop
        if stops:
            # A new stop string can only be in the tail. A token may be a fraction of a character,
            # hence the 4.
            tail = row.tokens[-(max(map(len, stops)) * 4 + 4) :]
            if cut_at_stop(self.engine.tokenizer.decode(tail, skip_special_tokens=True), stops)[1]:
                return "stop"
        return "length" if len(row.tokens) >= row.limit else None


def _chunks(prompts: list[tuple[int, ...]]) -> Iterator[list[tuple[int, ...]]]:
    """Prompts, sorted by length, in groups of at most PREFILL_TOKENS including padding."""
    chunk: list[tuple[int, ...]] = []
    for prompt in prompts:
        if chunk and (len(chunk) + 1) * len(prompt) > PREFILL_TOKENS:
            yield chunk
            chunk = []
        chunk.append(prompt)
    if chunk:
        yield chunk


def sample(logits: Any, rows: list[Row]) -> tuple[Any, Any]:
    """One token per row [n], and its log-prob [n] under the distribution drawn from.

    `logits` [n, vocabulary].
    """
    import torch

    settings = [row.request.sampling for row in rows]
    device = logits.device
    temperature = torch.tensor([s.temperature or 1.0 for s in settings], device=device)
    logits = logits / temperature[:, None]
    if any(s.top_k or s.top_p < 1 for s in settings):
        logits = truncate(logits, [s.top_k for s in settings], [s.top_p for s in settings])
    logprobs = torch.log_softmax(logits, -1)
    cumulative = logprobs.exp().cumsum(-1, dtype=torch.float64)
    draws = torch.tensor(
        [row.draw() if row.ended is None else 0.0 for row in rows],
        device=device,
        dtype=torch.float64,
    )
    # The last entry is the true total, a hair off 1. Scaled by it, a draw stays below, so the token
    # has mass.
    drawn = torch.searchsorted(cumulative, (draws * cumulative[:, -1])[:, None], right=True)[:, 0]
    greedy = torch.tensor([s.temperature == 0 for s in settings], device=device)
    chosen = torch.where(greedy, logits.argmax(-1), drawn.clamp(max=logits.shape[-1] - 1))
    return chosen, logprobs.gather(-1, chosen[:, None])[:, 0]


def truncate(logits: Any, top_k: list[int], top_p: list[float]) -> Any:
    """Set logits [n, vocabulary] outside top-k, then outside the smallest set of mass top-p, to
    -inf.
    """
    import torch

    ordered, order = logits.sort(-1, descending=True)
    size = logits.shape[-1]
    ranks = torch.arange(size, device=logits.device)[None]
    limit = torch.tensor([k or size for k in top_k], device=logits.device)[:, None]
    ordered = ordered.masked_fill(ranks >= limit, float("-inf"))
    probs = ordered.softmax(-1)
    before = probs.cumsum(-1) - probs  # mass of all likelier tokens
    mass = torch.tensor(top_p, device=logits.device)[:, None]
    ordered = ordered.masked_fill((before >= mass) & (ranks > 0), float("-inf"))
    return torch.full_like(logits, float("-inf")).scatter(-1, order, ordered)


# --- the key-value cache


def new_cache() -> Any:
    """A cache that grows in steps: `torch.cat` would copy all of it for each token."""
    import torch
    from transformers.cache_utils import Cache, DynamicLayer

    class GrowingLayer(DynamicLayer):
        def update(
            self, key_states: Any, value_states: Any, *args: Any, **kwargs: Any
        ) -> tuple[Any, Any]:
            old = self.get_seq_length()
            new = old + key_states.shape[-2]
            if not self.is_initialized:
                self.lazy_initialization(key_states, value_states)
                self.room: list[Any] = []
            if (
                not self.room
                or self.room[0].shape[-2] < new
                or self.room[0].shape[0] != key_states.shape[0]
            ):
                shape = list(key_states.shape)
                shape[-2] = new + GROWTH
                self.room = [
                    torch.empty(shape, dtype=key_states.dtype, device=key_states.device)
                    for _ in range(2)
                ]
                if old:
                    self.room[0][..., :old, :], self.room[1][..., :old, :] = self.keys, self.values
            self.room[0][..., old:new, :], self.room[1][..., old:new, :] = key_states, value_states
            self.keys, self.values = (part[..., :new, :] for part in self.room)
            return self.keys, self.values

        def put(self, keys: Any, values: Any) -> None:
            """Replace the rows."""
            self.keys, self.values, self.room = keys, values, []

    return Cache(layer_class_to_replicate=GrowingLayer)


def select(cache: Any, index: Any, keep: int | None = None) -> None:
    """Keep the rows `index` [n] of a cache, and its last `keep` positions (the others are padding
    in all rows).
    """
    for layer in cache.layers:
        start = 0 if keep is None else max(0, layer.keys.shape[-2] - keep)
        layer.put(layer.keys[index, :, start:], layer.values[index, :, start:])


def join(cache: Any, other: Any) -> None:
    """Add the rows of `other` to `cache`, left-padding the shorter one."""
    import torch
    from torch.nn.functional import pad

    longest = max(cache.get_seq_length(), other.get_seq_length())
    for layer, new in zip(cache.layers, other.layers):
        pairs = [(layer.keys, new.keys), (layer.values, new.values)]
        layer.put(
            *[torch.cat([pad(x, (0, 0, longest - x.shape[-2], 0)) for x in pair]) for pair in pairs]
        )


def copy_weights(model: Any, directory: Path) -> str:
    """Copy the tensors of safetensors files into `model`, read them back, and return the hash of
    what was read.

    Raises CurateError if a tensor is missing, has another shape, or differs from the file
    afterwards.
    """
    import torch
    from safetensors import safe_open

    files = [safe_open(path, "pt") for path in sorted(directory.glob("*.safetensors"))]
    where = {name: file for file in files for name in file.keys()}  # noqa: SIM118 (not a dict)
    digest = hashlib.sha256()
    tied = set(getattr(model, "all_tied_weights_keys", None) or ())
    for name, parameter in model.named_parameters():
        if name not in where:
            if name in tied:
                continue
            raise CurateError(
                f"'{directory}' lacks the tensor '{name}', which the running model has"
            )
        expected = where[name].get_tensor(name).to(parameter.dtype)
        if expected.shape != parameter.shape:
            raise CurateError(
                f"'{name}' has shape {list(expected.shape)} in '{directory}', and the running "
                f"model needs {list(parameter.shape)}"
            )
        with torch.no_grad():
            parameter.copy_(expected)
        held = parameter.detach().cpu()
        if not torch.equal(held, expected):
            raise CurateError(f"'{name}' did not arrive in the engine from '{directory}'")
        digest.update(name.encode() + held.contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]
