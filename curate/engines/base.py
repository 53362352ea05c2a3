"""The contract of all engines: requests in, completions out, in the order in which they finish.

    engine = open_engine(EngineConfig(), model_dir)
    for completion in engine.generate(requests):  # lazy: a window of requests is in flight
        ...

A request that cannot be completed (too long, empty, refused) becomes a completion with
`finish_reason = 'error'` and the reason. `generate` raises only if the engine itself is lost.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

from pydantic import Field, field_validator

from curate.config import Config
from curate.engines.models import end_tokens, weights_hash
from curate.errors import CurateError, UsageError
from curate.records import Completion, Request


class EngineConfig(Config):
    """Settings of an engine.

    Settings of a single backend go into `args`, which are passed to it unchanged.
    """

    name: str = Field(
        default="auto",
        description="auto, vllm, transformers, openai, stub, or your own as 'package.module:name'",
    )
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = Field(
        default="auto",
        description="auto: the weights' dtype, or float32 on a CPU that lacks it",
    )
    max_model_len: int | None = Field(
        default=None,
        ge=2,
        description="tokens of prompt and completion together; None: the length of the model",
    )
    memory: float | None = Field(
        default=None,
        gt=0,
        description="GiB for the key-value cache; None: chosen from the device's free memory",
    )
    seed: int = Field(
        default=0, ge=0, description="seed of the engine; each request also has its own"
    )
    tensor_parallel_size: int = Field(
        default=1, ge=1, description="number of GPUs that one copy of the model is split across"
    )
    replicas: int = Field(
        default=1,
        ge=1,
        description="copies of the model, each on its own GPUs, fed from one queue",
    )
    devices: list[int] | None = Field(
        default=None,
        description="GPUs reserved for the engine, as this process numbers them (2,3); None: all",
    )
    transfer: Literal["auto", "nccl", "files"] = Field(
        default="auto",
        description="weights from a trainer; auto: nccl between GPUs (vLLM's own), else files",
    )
    in_flight: int | None = Field(
        default=None,
        ge=1,
        description="requests in flight; None: twice the number that run at once",
    )
    args: dict[str, Any] = Field(
        default_factory=dict, description="passed to the backend unchanged"
    )

    @field_validator("devices", mode="before")
    @classmethod
    def _numbers(cls, value: Any) -> Any:
        """Read `2,3` and `2` as lists."""
        numbers = (
            [part for part in value.split(",") if part.strip()] if isinstance(value, str) else value
        )
        return [numbers] if isinstance(numbers, int) else numbers

    @field_validator("devices")
    @classmethod
    def _distinct(cls, value: list[int] | None) -> list[int] | None:
        if value is not None and (not value or min(value) < 0 or len(set(value)) < len(value)):
            raise ValueError(f"{value}: give distinct GPU ids, e.g. 2,3")
        return value


@runtime_checkable
class Engine(Protocol):
    """Completes prompts. One engine runs one `generate` at a time."""

    name: str
    model_path: Path
    max_model_len: int
    end_token_ids: set[int]

    @property
    def model_hash(self) -> str:
        """Hash of the weights; for a remote model, of the server and its name for the model."""

    @property
    def tokenizer(self) -> Any:
        """The Hugging Face tokenizer, or None if the backend has none."""

    def generate(self, requests: Iterable[Request | None]) -> Iterator[Completion]:
        """Yield completions in the order in which they finish; reads `requests` lazily.

        None among the requests means "none now; read on after the next completion", so that a
        caller can base its next requests on results. Closing the iterator early aborts what is in
        flight.
        """

    def render_chat(
        self, messages: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """The messages as one prompt, by the model's chat template. UsageError if it has none."""

    def update_weights(self, directory: str | Path) -> str:
        """Load weights of the same architecture in place. Returns the fingerprint read back from
        the engine.

        Raises CurateError if the engine's weights then differ from the files. Prefix caches are
        emptied.
        """

    def sleep(self) -> None:
        """Release memory for a trainer, if the backend can; `wake` allocates it again."""

    def wake(self) -> None: ...

    def close(self) -> None: ...


class ModelDirectory:
    """Base of engines over a local model directory: tokenizer, end tokens, lengths, checks of
    requests.
    """

    name = ""
    _generating = False

    def __init__(self, config: EngineConfig, model_dir: str | Path) -> None:
        self.config = config
        self.tokenizer: Any = load_tokenizer(Path(model_dir))
        self._encode = lru_cache(maxsize=1024)(self._encode_text)
        self._adopt(Path(model_dir))
        longest = model_length(self.model_path)
        self.max_model_len = min(config.max_model_len or longest, longest)

    @contextlib.contextmanager
    def _exclusively(self) -> Iterator[None]:
        """Mark the block of a `generate`. CurateError if another one is running."""
        if self._generating:
            raise CurateError("this engine is already generating: close the earlier iterator first")
        self._generating = True
        try:
            yield
        finally:
            self._generating = False

    def _check_idle(self) -> None:
        """Raise CurateError during a `generate`: its samples must come from one set of weights."""
        if self._generating:
            raise CurateError(
                "weights cannot change while requests are in flight: finish or close the iterator "
                "first"
            )

    def _adopt(self, model_dir: Path) -> None:
        """Read the settings that depend on the files in `model_dir`."""
        self.model_path = model_dir
        self._hash: str | None = None
        self.end_token_ids = end_tokens(model_dir, self.tokenizer)

    @property
    def model_hash(self) -> str:
        """Hash of the weights, computed on first use: a trainer that updates them each step may
        never need it.
        """
        if self._hash is None:
            self._hash = weights_hash(self.model_path)
        return self._hash

    def render_chat(
        self, messages: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        return render_chat(self.tokenizer, messages, add_generation_prompt, self.model_path)

    def _encode_text(self, prompt: str) -> list[int]:
        return encode(self.tokenizer, prompt)

    def prepare(self, request: Request) -> tuple[list[int], str | None]:
        """Token ids of the prompt, and the reason why the request cannot be completed (None if it
        can).
        """
        sampling_fault = check_sampling(request)
        if sampling_fault:
            return [], sampling_fault
        try:
            ids = (
                request.prompt_token_ids
                if request.prompt_token_ids is not None
                else self._encode(request.prompt)
            )
        except Exception as error:  # tokenizers refuse some byte sequences: only this request fails
            return [], f"the prompt cannot be tokenised: {error}"
        if not ids:
            return ids, "the prompt is empty"
        if len(ids) >= self.max_model_len:
            return (
                ids,
                f"the prompt has {len(ids)} tokens; the model takes {self.max_model_len} in all",
            )
        highest = max(ids)
        if min(ids) < 0 or highest >= max(len(self.tokenizer), self.vocab_size):
            return ids, f"token id {highest if highest > 0 else min(ids)} is outside the vocabulary"
        return ids, None

    @property
    def vocab_size(self) -> int:
        return int(read_config(self.model_path).get("vocab_size") or 0)

    def check_same_architecture(self, directory: Path) -> None:
        """CurateError if the weights in `directory` have another architecture or vocabulary."""
        old, new = read_config(self.model_path), read_config(directory)
        keys = (
            "architectures",
            "hidden_size",
            "num_hidden_layers",
            "vocab_size",
            "num_attention_heads",
        )
        for key in (*keys, "num_key_value_heads", "intermediate_size", "tie_word_embeddings"):
            if old.get(key) != new.get(key):
                raise CurateError(
                    f"the weights in '{directory}' do not fit the running engine: {key} is "
                    f"{new.get(key)} there and {old.get(key)} in '{self.model_path}'. "
                    "Close this engine and open one for that model"
                )

    def sleep(self) -> None:
        return None

    def wake(self) -> None:
        return None


# --- small parts shared by engines


def load_tokenizer(model_dir: Path) -> Any:
    """Load the tokenizer of a model directory. UsageError if it has none."""
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(model_dir)
    except Exception as error:
        raise UsageError(
            f"the tokenizer in '{model_dir}' does not load ({str(error).splitlines()[0][:200]}): "
            "the directory needs config.json, *.safetensors, tokenizer.json and "
            "tokenizer_config.json"
        ) from error


def encode(tokenizer: Any, prompt: str) -> list[int]:
    """Token ids of a prompt, with the special tokens that the tokenizer adds, but never a second
    BOS.

    Chat templates write BOS into the text. A tokenizer that adds another would give a prompt unlike
    any in training.
    """
    bos = tokenizer.bos_token
    return list(tokenizer.encode(prompt, add_special_tokens=not (bos and prompt.startswith(bos))))


def render_chat(
    tokenizer: Any, messages: list[dict[str, str]], add_generation_prompt: bool, where: Any
) -> str:
    """The messages as text, by the tokenizer's chat template."""
    if not getattr(tokenizer, "chat_template", None):
        raise UsageError(
            f"the model '{where}' has no chat template: it is a base model. Use a plain-text "
            "template"
        )
    text = tokenizer.apply_chat_template(
        messages, tokenize=False, add_generation_prompt=add_generation_prompt
    )
    return str(text)


def read_config(model_dir: str | Path) -> dict[str, Any]:
    """config.json of a model; of a multimodal model, the part of its text model."""
    try:
        config = json.loads((Path(model_dir) / "config.json").read_text())
    except (OSError, ValueError) as error:
        raise UsageError(
            f"'{model_dir}' is not a model directory: config.json is missing or not JSON"
        ) from error
    return dict(config.get("text_config") or config)


def model_length(model_dir: str | Path) -> int:
    """Context length of the model, in tokens; 2048 if its config does not give it."""
    return int(read_config(model_dir).get("max_position_embeddings") or 2048)


def check_sampling(request: Request) -> str | None:
    """The reason why the sampling settings of a request are invalid; None if they are valid."""
    sampling = request.sampling
    if sampling.max_tokens < 1:
        return f"max_tokens is {sampling.max_tokens}; at least 1 is needed"
    if sampling.temperature < 0:
        return f"temperature is {sampling.temperature}; it cannot be negative"
    if not 0 < sampling.top_p <= 1:
        return f"top_p is {sampling.top_p}; it must be above 0 and at most 1"
    if sampling.top_k < 0:
        return f"top_k is {sampling.top_k}; 0 means no limit"
    if "" in sampling.stop:
        return "a stop string is empty"
    if not -(2**63) <= request.seed < 2**63:
        return f"seed {request.seed} does not fit 64 bits"
    return None


def failed(request: Request, reason: str, ids: list[int] | None = None) -> Completion:
    """The completion of a request that failed."""
    return Completion(
        request.request_id,
        "",
        "error",
        prompt_token_ids=ids or None,
        prompt_tokens=len(ids or ()),
        error=reason,
    )


def cut_at_stop(text: str, stops: tuple[str, ...]) -> tuple[str, bool]:
    """The text up to and including the first stop string, and whether it has one."""
    matches = [(at, len(stop)) for stop in stops if stop and (at := text.find(stop)) >= 0]
    return (text[: sum(min(matches))], True) if matches else (text, False)
