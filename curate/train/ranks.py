"""The processes that train together: one by default, several under `torchrun`.

Each rank computes a part of the rows of a batch. Losses are sums with global weights, so gradients
are summed over ranks, never averaged. Weights are sharded with FSDP2 (`model/sharding.py`), or
every rank holds all of them (`compute.fsdp: false`).
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    from curate.train.model.layout import PromptCompletion


@dataclass
class Ranks:
    """This process's rank among those that train together."""

    rank: int = 0
    size: int = 1
    sharded: bool = False

    @property
    def first(self) -> bool:
        """Whether this rank samples, writes and reports."""
        return self.rank == 0

    def deal(self, items: list[Any], sequences: Sequence[PromptCompletion]) -> list[Any]:
        """Return this rank's items, in order; `sequences` are their tokens.

        Completions of one prompt stay on one rank, which computes the prompt once. Groups are dealt
        longest first, each to the rank with the fewest tokens. A group with more than a rank's
        share of all tokens is halved.
        """
        if self.size == 1:
            return items
        by_prompt: dict[tuple[int, ...], list[int]] = {}
        for i, sequence in enumerate(sequences):
            by_prompt.setdefault(tuple(sequence.prompt), []).append(i)

        def tokens(group: list[int]) -> int:
            return len(sequences[group[0]].prompt) + sum(
                len(sequences[i].completion) for i in group
            )

        groups, waiting = [], list(by_prompt.values())
        part = sum(map(tokens, waiting)) / self.size
        while waiting:
            group = waiting.pop()
            if len(group) > 1 and tokens(group) > 1.25 * part:
                waiting += [group[: len(group) // 2], group[len(group) // 2 :]]
            else:
                groups.append(group)
        loads, own = [0] * self.size, []
        for group in sorted(groups, key=lambda g: (-tokens(g), g)):
            rank = loads.index(min(loads))
            loads[rank] += tokens(group)
            if rank == self.rank:
                own += group
        return [items[i] for i in sorted(own)]

    def broadcast(self, value: Any) -> Any:
        """Return the first rank's value on every rank."""
        if self.size == 1:
            return value
        import torch.distributed as dist

        box = [value if self.first else None]
        dist.broadcast_object_list(box, src=0)
        return box[0]

    def gather(self, value: Any) -> list[Any]:
        """Return every rank's value on every rank, in the order of ranks."""
        if self.size == 1:
            return [value]
        import torch.distributed as dist

        box: list[Any] = [None] * self.size
        dist.all_gather_object(box, value)
        return box

    def all_reduce_sums(self, sums: dict[str, float]) -> dict[str, float]:
        """Return sums over all ranks, by name; a rank without rows may lack names."""
        total: dict[str, float] = {}
        for part in self.gather(sums):
            for name, value in part.items():
                total[name] = total.get(name, 0.0) + value
        return total

    def reduce_gradients(self, parameters: Iterable[torch.nn.Parameter]) -> None:
        """Sum gradients over ranks that hold whole weights; FSDP sums them in the backward pass."""
        if self.size == 1 or self.sharded:
            return
        import torch
        import torch.distributed as dist

        for parameter in parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            dist.all_reduce(parameter.grad)

    def barrier(self) -> None:
        """Wait for all ranks."""
        if self.size > 1:
            import torch.distributed as dist

            dist.barrier()


def join_ranks() -> Ranks:
    """Return the ranks that `torchrun` started, or a single one."""
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        return Ranks()
    import torch
    import torch.distributed as dist

    if not dist.is_initialized():
        cuda = torch.cuda.is_available()
        if cuda:
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
        dist.init_process_group("cpu:gloo,cuda:nccl" if cuda else "gloo")
    return Ranks(dist.get_rank(), size)


def leave_ranks() -> None:
    """Leave the process group, once all ranks are done."""
    if "torch" not in sys.modules:
        return
    import torch.distributed as dist

    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()
