"""Identity: hashes of everything that determines a trace, a version or a seed.

All ids are the first 16 bytes of BLAKE2b over canonical JSON, in hex.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from typing import Any

import polars as pl


def digest(*parts: Any) -> str:
    """Hash of the parts, each any JSON value. Keys are sorted: the order of a mapping does not
    matter.
    """
    return hashlib.blake2b(_json(parts), digest_size=16).hexdigest()


def digest_listed(part: list[Any]) -> str:
    """`digest(part)`; items may be iterators over pieces of lists too long to hold in memory."""
    result = hashlib.blake2b(b"[[", digest_size=16)
    for number, item in enumerate(part):
        result.update(b"," if number else b"")
        if not isinstance(item, Iterator):
            result.update(_json(item))
            continue
        result.update(b"[")
        for at, piece in enumerate(filter(None, item)):
            result.update((b"," if at else b"") + _json(piece)[1:-1])
        result.update(b"]")
    result.update(b"]]")
    return result.hexdigest()


def _json(value: Any) -> bytes:
    return json.dumps(
        value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, default=str
    ).encode()


def frame_digest(frame: pl.DataFrame) -> str:
    """Hash of the rows of a frame in their order, independent of machine and Polars version."""
    result = hashlib.blake2b(json.dumps(frame.columns).encode(), digest_size=16)
    for part in frame.iter_slices(50_000):
        result.update(part.write_ndjson().encode())
    return result.hexdigest()


def family_id(
    *,
    model_hash: str,
    recipe: str,
    template: str,
    form: str,
    sampling: dict[str, Any],
    seed: int,
    engine: str = "",
) -> str:
    """Id of traces that share everything that determines a text: weights, engine, prompt, sampling.

    Length limits and sample counts do not count, so that raising either keeps the id. `engine`
    includes its precision; it is empty for texts that no engine sampled.
    """
    sampling = {k: v for k, v in sampling.items() if k not in ("max_tokens", "samples", "logprobs")}
    return digest(
        "family", model_hash, recipe, template, form, sampling, seed, *([engine] if engine else [])
    )


def trace_id(family: str, problem_id: str, sample_index: int) -> str:
    """Id of one sample of one problem in a family."""
    return digest("trace", family, problem_id, sample_index)


def rollout_trace_id(run_id: str, policy_step: int, problem_id: str, sample_index: int) -> str:
    """Id of one rollout: run and step replace the weights."""
    return digest("rollout", run_id, policy_step, problem_id, sample_index)


def request_seed(seed: int, problem_id: str, sample_index: int) -> int:
    """Seed of one request, in [0, 2^31), independent of the other requests of a job."""
    return int(digest("seed", seed, problem_id, sample_index)[:8], 16) & 0x7FFFFFFF
