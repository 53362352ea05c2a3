"""The processes that train together: one by default, several under `torchrun`.

Each rank computes its share of the rows of a batch. Losses are sums with global weights, so gradients are summed over
ranks, never averaged. Weights are sharded with FSDP2, or held whole by every rank (`compute.fsdp: false`).
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from curate.train.config import ModelConfig

if TYPE_CHECKING:
    from curate.train.model.policy import Policy


@dataclass
class World:
    """This process among those that train together."""

    rank: int = 0
    size: int = 1
    sharded: bool = False

    @property
    def first(self) -> bool:
        """The rank that samples, writes and talks."""
        return self.rank == 0

    def mine(self, items: list[Any]) -> list[Any]:
        """This rank's share: every `size`-th item, so that shares of a list ordered by length are alike."""
        return items[self.rank :: self.size]

    def share(self, value: Any) -> Any:
        """What the first rank gives, on every rank."""
        if self.size == 1:
            return value
        import torch.distributed as dist

        box = [value if self.first else None]
        dist.broadcast_object_list(box, src=0)
        return box[0]

    def gather(self, value: Any) -> list[Any]:
        """What every rank gives, on every rank, by rank."""
        if self.size == 1:
            return [value]
        import torch.distributed as dist

        box: list[Any] = [None] * self.size
        dist.all_gather_object(box, value)
        return box

    def add_up(self, sums: dict[str, float]) -> dict[str, float]:
        """Sums over all ranks; a rank that had no rows may lack names."""
        total: dict[str, float] = {}
        for part in self.gather(sums):
            for name, value in part.items():
                total[name] = total.get(name, 0.0) + value
        return total

    def reduce_gradients(self, policy: Policy) -> None:
        """Sum gradients over ranks that hold whole weights; FSDP has done it in the backward pass."""
        if self.size == 1 or self.sharded:
            return
        import torch
        import torch.distributed as dist

        for parameter in policy.parameters():
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            dist.all_reduce(parameter.grad)

    def barrier(self) -> None:
        if self.size > 1:
            import torch.distributed as dist

            dist.barrier()


def join_world() -> World:
    """The world that `torchrun` made, or a world of one."""
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        return World()
    import torch
    import torch.distributed as dist

    if not dist.is_initialized():
        cuda = torch.cuda.is_available()
        if cuda:
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
        dist.init_process_group("cpu:gloo,cuda:nccl" if cuda else "gloo")
    return World(dist.get_rank(), size)


def leave_world() -> None:
    """Take leave of the other processes, once all are done."""
    import sys

    if "torch" not in sys.modules:
        return
    import torch.distributed as dist

    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()


def shard(policy: Policy, world: World, compute: ModelConfig) -> None:
    """Shard weights, gradients and optimizer over the ranks (FSDP2), layer by layer."""
    if world.size == 1 or not compute.fsdp:
        return
    from torch.distributed.fsdp import fully_shard

    from curate.train.model.policy import base

    layers = base(policy.model).base_model.layers
    for layer in layers:
        fully_shard(layer)
    fully_shard(policy.module)
    for module in (policy.module, *layers):
        # Sum, not mean: the weights of the loss are already global. Gloo knows sums only.
        module.set_gradient_divide_factor(1.0)
        module.set_force_sum_reduction_for_comms(True)
    world.sharded = policy.module.sharded = True
