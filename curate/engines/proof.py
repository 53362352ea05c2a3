"""The proof that new weights arrived in vLLM: every tensor that its workers hold is compared.

vLLM renames, fuses, pads and reorders weights for its kernels. A tensor that is still a row of
checkpoint tensors is compared bit for bit, others (packed experts, parts of fused matrices under
tensor parallelism) by a checksum that is the same in any order and ignores zeros. On CPUs vLLM
packs a matrix away and keeps only a function that multiplies by it: unit vectors bring some of its
columns back, bit for bit. A tensor without a counterpart in the checkpoint is listed, never
ignored.
"""

from __future__ import annotations

import re
from collections.abc import Container, Iterator, Mapping
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from curate.progress import counted

if TYPE_CHECKING:
    from torch import Tensor

# Up to this model size every tensor that allows it is compared bit for bit; of a larger model an
# even sample is, and the rest by checksums.
PROOF_BYTES = 2 << 30

# parts of the tensors that vLLM fuses, if the model does not name them itself
FUSED = {"qkv_proj": ("q_proj", "k_proj", "v_proj"), "gate_up_proj": ("gate_proj", "up_proj")}
EXPERTS = re.compile(r"(.*\.experts)(?:\.routed_experts)?\.(w13|w2)_(weight|bias)")
# Names of an expert's matrices in checkpoints: gate and up, then down.
EXPERT_PARTS = ((("gate_proj", "up_proj"), "down_proj"), (("w1", "w3"), "w2"))

COLUMNS = 64  # of each packed matrix that are compared; a matrix that was not sent differs in all
CHUNK = 1 << 24  # elements that a checksum widens to int64 at once


def checksum(tensor: Tensor) -> int:
    """Checksum of a tensor's elements, modulo 2^64: the same in any order, and of 0 it is 0.

    The bits of an element, as a number x, are mixed to x (a x + b).
    """
    import torch

    kinds = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    bits = tensor.detach().reshape(-1).contiguous().view(kinds[tensor.element_size()])
    total = 0
    for part in bits.split(CHUNK):
        x = part.to(torch.int64)
        total += int((x * (x * 0x9E3779B1 + 0x85EBCA77)).sum())
    return total % (1 << 64)


def hash_of(tensor: Tensor) -> str:
    """Hash of a CPU tensor's bytes."""
    import torch

    return sha256(tensor.contiguous().view(torch.uint8).numpy().data).hexdigest()


# --- tensors sent by the trainer


class Sent(Protocol):
    """The tensors of a checkpoint, for a worker to compare its own with."""

    names: Container[str]

    def shape(self, name: str) -> tuple[int, ...]: ...

    def checksum(self, name: str, dtype: Any) -> int | None:
        """Checksum of the tensor in the engine's dtype; None if unknown."""
        ...

    def equals(self, name: str, part: str, held: Tensor) -> bool | None:
        """Whether a part of the tensor equals `held` bit for bit; None if unknown.

        `part` is "" for the whole, "dimension:rank" under tensor parallelism, or "columns" for
        those of `probed`.
        """
        ...


class SentFiles:
    """Tensors in the safetensors files of a directory, for a group of `ranks` workers."""

    def __init__(self, directory: str, ranks: int) -> None:
        from safetensors import safe_open

        files = [safe_open(path, "pt") for path in sorted(Path(directory).glob("*.safetensors"))]
        self.names = {name: file for file in files for name in file.keys()}  # noqa: SIM118 (not a dict)
        self.ranks = ranks

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self.names[name].get_slice(name).get_shape())

    def checksum(self, name: str, dtype: Any) -> int:
        return checksum(self.names[name].get_tensor(name).to(dtype))

    def equals(self, name: str, part: str, held: Tensor) -> bool | None:
        import torch

        tensor = self.names[name].get_tensor(name)
        if part == "columns":
            tensor = tensor[:, probed(tensor.shape[1])]
        elif part:
            dim, rank = map(int, part.split(":"))
            tensor = tensor.chunk(self.ranks, dim)[rank]
        return torch.equal(tensor.to(held.dtype), held)


class SentHashes:
    """Tensors that were sent without files, as hashes from `expected_hashes`."""

    def __init__(self, expected: Mapping[str, Mapping[str, Any]]) -> None:
        self.names = expected

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self.names[name]["shape"])

    def checksum(self, name: str, dtype: Any) -> int | None:
        form = self.names[name]["forms"].get(str(dtype))
        return None if form is None else int(form["checksum"])

    def equals(self, name: str, part: str, held: Tensor) -> bool | None:
        wanted = self.names[name]["forms"].get(str(held.dtype), {}).get("hashes", {}).get(part)
        return None if wanted is None else hash_of(held) == wanted


def expected_hashes(
    tensors: Mapping[str, Tensor], ranks: int, dtype: Any = None
) -> dict[str, dict[str, Any]]:
    """`shape` and `forms` of each tensor, by name; a form has a `checksum` and `hashes`.

    One form is in the tensor's dtype, and one in the engine's `dtype`, which the engine may convert
    it to. Hashes are of the whole ("") and of the parts ("dimension:rank") that tensor parallelism
    over `ranks` may hold; in a large model only an even sample has them.
    """
    size = sum(t.numel() * t.element_size() for t in tensors.values())
    every = max(1, -(-size // PROOF_BYTES))
    expected: dict[str, dict[str, Any]] = {}
    for i, (name, tensor) in enumerate(list(tensors.items())[::-1]):
        kinds = {tensor.dtype, dtype or tensor.dtype} if tensor.is_floating_point() else {None}
        forms = {}
        for kind in kinds:
            form = tensor if kind is None else tensor.to(kind)
            hashes = _hashes(form, ranks) if i % every == 0 else {}
            forms[str(form.dtype)] = {"checksum": checksum(form), "hashes": hashes}
        expected[name] = {"shape": tuple(tensor.shape), "forms": forms}
    return expected


def probed(width: int) -> list[int]:
    """Indices of the columns of a packed matrix that are compared, evenly spaced."""
    count = min(COLUMNS, width)
    return [i * width // count for i in range(count)]


def _hashes(tensor: Tensor, ranks: int) -> dict[str, str]:
    """Hashes of a tensor and of the parts that a rank may hold or that can be read back."""
    hashes = {"": hash_of(tensor)}
    if ranks == 1 and tensor.ndim == 2:
        hashes["columns"] = hash_of(tensor[:, probed(tensor.shape[1])])
    for dim in range(min(2, tensor.ndim)) if ranks > 1 else ():
        if tensor.shape[dim] % ranks == 0:
            parts = enumerate(tensor.chunk(ranks, dim))
            hashes |= {f"{dim}:{rank}": hash_of(part) for rank, part in parts}
    return hashes


# --- tensors of a worker


def parts_of(model: Any, name: str, shape: tuple[int, ...], sent: Container[str]) -> list[str]:
    """Names of the checkpoint tensors that make up vLLM's parameter; empty if there are none.

    `model` may name its fusions (`packed_modules_mapping`).
    """
    for parts in _candidates(model, name.replace(".base_layer", ""), shape):
        if all(part in sent for part in parts):
            return parts
    return []


def _candidates(model: Any, name: str, shape: tuple[int, ...]) -> Iterator[list[str]]:
    yield [name]
    fusions = FUSED | _stacked(model) | dict(getattr(model, "packed_modules_mapping", None) or {})
    for fused, parts in fusions.items():
        if f".{fused}." in name:
            yield [name.replace(f".{fused}.", f".{part}.") for part in parts]
    if match := EXPERTS.fullmatch(name):
        stem, which, kind = match.groups()
        for (gate, up), down in EXPERT_PARTS:
            rows = (gate, up) if which == "w13" else (down,)
            yield [f"{stem}.{e}.{row}.{kind}" for e in range(shape[0]) for row in rows]
        fused = "gate_up_proj" if which == "w13" else "down_proj"
        yield [f"{stem}.{fused}" + ("" if kind == "weight" else f"_{kind}")]


def _stacked(model: Any) -> dict[str, list[str]]:
    """Parts of the tensors that vLLM stacks by its mapping of names."""
    mapper = getattr(model, "hf_to_vllm_mapper", None)
    parts: dict[str, list[str]] = {}
    for part, (fused, _) in (getattr(mapper, "orig_to_new_stacked", None) or {}).items():
        parts.setdefault(fused.strip("."), []).append(part.strip("."))
    return parts


class Renamed:
    """A checkpoint under the tensor names of vLLM's model."""

    def __init__(self, model: Any, sent: Any) -> None:
        mapper: Any = getattr(model, "hf_to_vllm_mapper", None)
        if getattr(mapper, "orig_to_new_stacked", None):
            # Only renamed: that several tensors become one is `parts_of`'s to know.
            mapper = replace(mapper, orig_to_new_stacked={})
        self.sent = sent
        names = {mapper.map_name(name) if mapper else name: name for name in sent.names}
        self.names = {new: name for new, name in names.items() if new is not None}

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self.sent.shape(self.names[name]))

    def checksum(self, name: str, dtype: Any) -> int | None:
        value: int | None = self.sent.checksum(self.names[name], dtype)
        return value

    def equals(self, name: str, part: str, held: Tensor) -> bool | None:
        result: bool | None = self.sent.equals(self.names[name], part, held)
        return result


def compare(worker: Any, given: Any) -> dict[str, Any]:
    """Compare all parameters of a worker's model with a directory or with `expected_hashes`.

    Returns `exact`, whether a tensor is equal bit for bit, by name; `columns`, the same for some
    columns of a packed matrix; `sums`, a tensor's checksum and the one that was sent, of those that
    could only be compared so; `unseen`, the other names; and `digest`, the checksums of everything.
    `prove` judges the results of all workers together.
    """
    from vllm.distributed import (
        get_tensor_model_parallel_rank,
        get_tensor_model_parallel_world_size,
    )

    rank, ranks = get_tensor_model_parallel_rank(), get_tensor_model_parallel_world_size()
    sent = SentFiles(given, ranks) if isinstance(given, str) else SentHashes(given)
    return compare_model(worker.get_model(), sent, rank, ranks)


def compare_model(model: Any, given: Any, rank: int = 0, ranks: int = 1) -> dict[str, Any]:
    """Compare a model on one of `ranks` workers with the tensors sent (`Sent`); see `compare`."""
    sent = Renamed(model, given)
    parameters = list(model.named_parameters())
    size = sum(p.numel() * p.element_size() for _, p in parameters)
    every = max(1, -(-size // PROOF_BYTES))
    exact: dict[str, bool] = {}
    columns: dict[str, bool] = {}
    sums: dict[str, tuple[int, int]] = {}
    unseen: list[str] = []
    digest = sha256()
    for i, (name, parameter) in enumerate(parameters[::-1]):
        parts = parts_of(model, name, tuple(parameter.shape), sent.names)
        packed = parameter.numel() == 0
        readable = unpacked_columns(model, name, parts, sent) if packed and ranks == 1 else None
        held = checksum(parameter if readable is None else readable)
        digest.update(f"{name} {held} ".encode())
        if readable is not None:
            pieces = readable.split([sent.shape(part)[0] for part in parts])
            results = [sent.equals(p, "columns", piece) for piece, p in zip(pieces, parts)]
            if None not in results:
                columns[name] = all(results)
                continue
        equal = None
        if parts and i % every == 0:
            equal = in_order(parameter, parts, sent, rank, ranks)
        if equal is not None:
            exact[name] = equal
            continue
        wanted = [sent.checksum(part, parameter.dtype) for part in parts]
        if wanted and None not in wanted and not packed:
            sums[name] = held, sum(map(int, wanted)) % (1 << 64)  # type: ignore[arg-type]
        else:
            unseen.append(name)
    return {
        "exact": exact,
        "columns": columns,
        "sums": sums,
        "unseen": unseen,
        "matrices": sum(
            (p.ndim >= 2 and n in exact) or n in sums or n in columns for n, p in parameters
        ),
        "digest": digest.hexdigest()[:16],
    }


def unpacked_columns(model: Any, name: str, parts: list[str], sent: Renamed) -> Any:
    """Some columns [rows, columns] of a matrix that vLLM's CPU kernels packed away; None if there
    is no such matrix.

    A unit vector picks a column without rounding: all other products are zero.
    """
    import torch

    layer = model.get_submodule(name.rpartition(".")[0])
    shapes = [sent.shape(part) for part in parts]
    if not hasattr(layer, "cpu_linear") or not shapes or any(len(shape) != 2 for shape in shapes):
        return None
    width = shapes[0][1]
    chosen = probed(width)
    units = torch.zeros(len(chosen), width, dtype=layer.weight.dtype)
    units[range(len(chosen)), chosen] = 1
    with torch.inference_mode():
        columns = layer.cpu_linear(units, layer.weight, None)
    rows = sum(shape[0] for shape in shapes)
    return columns.T.contiguous() if columns.shape == (len(chosen), rows) else None


def in_order(parameter: Any, parts: list[str], sent: Renamed, rank: int, ranks: int) -> bool | None:
    """Whether a parameter is its parts stacked in order; None if it has another shape."""
    shapes = [sent.shape(part) for part in parts]
    if ranks > 1:
        if len(parts) > 1 or (key := _part(shapes[0], parameter.shape, rank, ranks)) is None:
            return None
        return sent.equals(parts[0], key, parameter.detach().cpu())
    rows = [shape[0] for shape in shapes]
    rest = shapes[0][1:]
    held = parameter.detach()
    if held.ndim == 3 and len(rest) == 1:  # experts, stacked
        if held.shape[2:] != rest or held.shape[0] * held.shape[1] != sum(rows):
            return None
        held = held.flatten(0, 1)
    held = unpadded(held, (sum(rows), *rest)).cpu()
    if held.shape != (sum(rows), *rest):
        return None
    pieces = zip(held.split(rows), parts, strict=True)
    results = [sent.equals(part, "", piece) for piece, part in pieces]
    if None in results:
        return None
    if parameter.ndim == 3 and not all(results):
        return None  # experts may be in the order of a kernel: their checksum decides
    return all(results)


def _part(whole: Any, shape: Any, rank: int, ranks: int) -> str | None:
    """Name, as in `expected_hashes`, of the part of a tensor that this rank holds.

    None if no part has its shape.
    """
    if tuple(whole) == tuple(shape):
        return ""
    for dim, size in enumerate(whole):
        if (*whole[:dim], size // ranks, *whole[dim + 1 :]) == tuple(shape) and size % ranks == 0:
            return f"{dim}:{rank}"
    return None


def unpadded(held: Any, shape: Any) -> Any:
    """A tensor without the rows that pad the vocabulary beyond `shape`."""
    if held.ndim == 2 and held.shape[0] > shape[0] and held.shape[1:] == tuple(shape[1:]):
        held = held[: shape[0]]
    return held


# --- the judgement


def prove(results: list[dict[str, Any]], what: str) -> dict[str, Any]:
    """Judge the comparisons of all workers of an engine (`compare`).

    Returns the fingerprint, and numbers and names for `describe`. Raises RuntimeError if a tensor
    differs from `what` was sent, or if no matrix could be compared.
    """
    wrong = [
        name
        for result in results
        for name, equal in (result["exact"] | result["columns"]).items()
        if not equal
    ]
    names = dict.fromkeys(name for result in results for name in result["sums"])
    for name in names:
        pairs = [result["sums"][name] for result in results if name in result["sums"]]
        if not _adds_up([held for held, _ in pairs], pairs[0][1]):
            wrong.append(name)
    if wrong:
        raise RuntimeError(
            f"the engine differs from {what} in {counted(len(wrong), 'tensor')}, "
            f"the first is {wrong[0]}"
        )
    if any(result["matrices"] == 0 for result in results):
        raise RuntimeError(
            "no weight matrix could be read back from the engine, so nothing proves the update"
        )
    return {
        "digest": "+".join(result["digest"] for result in results),
        "exact": len(results[0]["exact"]),
        "columns": len(results[0]["columns"]),
        "sums": len(results[0]["sums"]),
        "unseen": results[0]["unseen"],
    }


def _adds_up(held: list[int], wanted: int) -> bool:
    """Whether the checksums of all ranks are those of one tensor.

    The tensor is split over the ranks, or every rank has it, or groups of ranks share parts (key
    heads).
    """
    if all(value == wanted for value in held):
        return True
    total = sum(held) % (1 << 64)
    copies = [n for n in range(1, len(held) + 1) if len(held) % n == 0]
    return any(total == wanted * n % (1 << 64) for n in copies)


def describe(proof: dict[str, Any]) -> str:
    """Describe in one line what a proof compared and what it did not."""
    text = f"weights in the engine: {counted(proof['exact'], 'tensor')} compared bit for bit"
    if proof["columns"]:
        text += f", {proof['columns']} packed in {COLUMNS} columns each"
    if proof["sums"]:
        text += f", {proof['sums']} by checksums in any order"
    if unseen := proof["unseen"]:
        text += f"; not compared: {len(unseen)}, such as {unseen[0]}"
    return text
