"""Weights and optimizer over several ranks (FSDP2), and the optimizer's state in checkpoints.

Unsharded state is one dictionary. Sharded state is written and read in parts, so that no rank ever
holds all of it; PyTorch's distributed checkpoints reshard while loading, so a run may resume with
another number of ranks.
"""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from curate.errors import CurateError
from curate.train.config import ModelConfig
from curate.train.model.lora import base
from curate.train.model.policy import Policy
from curate.train.ranks import Ranks


def shard(policy: Policy, ranks: Ranks, compute: ModelConfig) -> None:
    """Shard weights, gradients and optimizer over the ranks, layer by layer.

    Where products are bf16, ranks send each other the weights of layers in bf16, which halves the
    traffic, and sum gradients in fp32. Embeddings, last norm and head stay fp32: the states that
    layers add to are fp32, as on one rank. So do layers with numbers that bf16 would distort.
    """
    if ranks.size == 1 or not compute.fsdp:
        return
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    layers = layers_of(base(policy.model))
    low = MixedPrecisionPolicy(
        param_dtype=torch.bfloat16, reduce_dtype=torch.float32, cast_forward_inputs=False
    )
    for layer in layers:
        short = policy.autocast and bears_bf16(layer)
        fully_shard(layer, mp_policy=low if short else MixedPrecisionPolicy())
    fully_shard(policy.module)
    for module in (policy.module, *layers):
        # Sum, not mean: the weights of the loss are global already. Gloo supports sums only.
        module.set_gradient_divide_factor(1.0)
        module.set_force_sum_reduction_for_comms(True)
    ranks.sharded = policy.module.sharded = True


def layers_of(model: Any) -> list[Any]:
    """Return the layers of a transformers model, outermost first.

    Each architecture names the classes of its layers, wherever they are: `model.layers`,
    `transformer.h`, or below the language model of one with vision.
    """
    names = set(getattr(model, "_no_split_modules", None) or ())
    layers: list[Any] = []
    inside: set[int] = set()
    for module in model.modules():
        if type(module).__name__ in names and id(module) not in inside:
            layers.append(module)
            inside |= {id(part) for part in module.modules()}
    return layers


def bears_bf16(layer: Any) -> bool:
    """Whether all weights of a layer may be rounded to bf16 before they are used.

    That holds for matrices, which autocast rounds anyway, for biases, and for scales of RMS norms.
    The logarithms of decay rates in a state-space layer are not among these.
    """
    return all(
        parameter.ndim >= 2
        or type(module).__name__.endswith("RMSNorm")
        or isinstance(module, torch.nn.Linear)
        for module in layer.modules()
        for parameter in module.parameters(recurse=False)
    )


def optimizer_state(policy: Policy, optimizer: Any) -> dict[str, Any]:
    """Return the state besides the model that resuming needs: the optimizer, and unmerged adapters.

    Every rank must call this.
    """
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


def restore_optimizer(policy: Policy, optimizer: Any, state: dict[str, Any]) -> None:
    """Restore the result of `optimizer_state`, on any number of ranks."""

    def placed(value: Any, parameter: Any) -> Any:
        if not isinstance(value, torch.Tensor):
            return value
        if value.shape == parameter.shape and hasattr(parameter, "device_mesh"):
            from torch.distributed.tensor import distribute_tensor

            mesh, placements = parameter.device_mesh, parameter.placements
            return distribute_tensor(value.to(parameter.device), mesh, placements)
        # Fused AdamW wants its count of steps on the device of the weights, too.
        return value.to(parameter.device)

    with torch.no_grad():
        for name, parameter in policy.model.named_parameters():
            if name in state["adapters"]:
                parameter.copy_(placed(state["adapters"][name], parameter))
            if name in state["optimizer"]:
                stored = state["optimizer"][name].items()
                optimizer.state[parameter] = {k: placed(v, parameter) for k, v in stored}


def save_shards(policy: Policy, optimizer: Any, path: Path) -> None:
    """Write moments and step counts by parameter, and adapters. Every rank must call this."""
    import torch.distributed.checkpoint as dcp

    tensors: dict[str, Tensor] = {}
    for name, parameter in policy.model.named_parameters():
        for key, value in optimizer.state.get(parameter, {}).items():
            tensors[f"{name}:{key}"] = value
        if policy.compute.lora and parameter.requires_grad:
            tensors[f"{name}:weight"] = parameter.detach()
    dcp.save(tensors, checkpoint_id=path)


def load_shards(policy: Policy, optimizer: Any, path: Path) -> None:
    """Restore what `save_shards` wrote, by however many ranks. Every rank must call this.

    CurateError if the files hold more than tensors.
    """
    import torch.distributed.checkpoint as dcp

    check_index(path / ".metadata")
    stored = dcp.FileSystemReader(path).read_metadata().state_dict_metadata
    tensors: dict[str, Tensor] = {}
    parameters = dict(policy.model.named_parameters())
    for full in stored:
        name, _, key = full.rpartition(":")
        parameter = parameters[name].detach()
        # Step counts are single numbers, everything else has the shape of its parameter.
        if key == "weight":
            tensors[full] = parameter
        else:
            tensors[full] = torch.zeros(()) if key == "step" else torch.zeros_like(parameter)
    dcp.load(tensors, checkpoint_id=path, no_dist=not dist.is_initialized())
    for full, value in tensors.items():
        name, _, key = full.rpartition(":")
        if key != "weight":
            optimizer.state[parameters[name]][key] = value.to(parameters[name].device)


# PyTorch reads tensors of shards with `weights_only`, but their index with plain pickle. These
# names are all that its classes need (torch/distributed/checkpoint/metadata.py, filesystem.py).
_INDEX = {
    "torch.distributed.checkpoint.metadata": {
        "BytesStorageMetadata",
        "ChunkStorageMetadata",
        "Metadata",
        "MetadataIndex",
        "StorageMeta",
        "TensorProperties",
        "TensorStorageMetadata",
        "_MEM_FORMAT_ENCODING",
    },
    "torch.distributed.checkpoint.filesystem": {"_StorageInfo"},
    "torch.serialization": {"_get_layout"},
    "torch": {"Size"},
    "pathlib": {"Path", "PosixPath", "PurePosixPath"},
    "pathlib._local": {"Path", "PosixPath", "PurePosixPath"},
}


class _IndexReader(pickle.Unpickler):
    """A reader of pickle that knows no other names, so that it can call nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        if module.partition(".")[0] == "torch" and isinstance(
            dtype := getattr(torch, name, None), torch.dtype
        ):
            return dtype
        if name not in _INDEX.get(module, ()):
            raise pickle.UnpicklingError(f"it names {module}.{name}")
        return super().find_class(module, name)


def check_index(path: Path) -> None:
    """CurateError unless the index of sharded tensors is what PyTorch writes, and nothing else."""
    try:
        with open(path, "rb") as file:
            _IndexReader(file).load()
    except Exception as error:  # a damaged pickle can raise anything
        raise CurateError(
            f"{path} cannot be read ({error}): it is damaged, or holds more than the places of "
            f"tensors. Delete {path.parents[1]} to resume from the step before it"
        ) from error
