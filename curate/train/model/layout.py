"""How token sequences lie in one call of the model: as a tree without padding, or as padded rows.

In a **tree**, all tokens of a micro-batch lie in one row. A segment attends to itself (causally) and to its ancestors:

    template ── question 1 ─┬─ completion 1        Prompts that begin alike (a template, a system prompt) share their
             │              └─ completion 2        beginning, and the completions of one prompt share the prompt: each
             └─ question 2 ─── completion 3        token is computed once, and its gradient sums over its descendants.

A causal model gives the same hidden states either way, since a token's state depends on what stands before it only.
Examples packed into one row never see each other: they are different roots or branches.
**Padded** is the plain way, for models whose attention cannot be replaced, and what the tests compare the tree with.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

# A shared beginning shorter than this is not worth a segment of its own.
MIN_SHARED = 8


@dataclass(frozen=True)
class Sequence_:
    """A prompt and what follows it; log-probs are wanted of the completion."""

    prompt: Sequence[int]
    completion: Sequence[int]


@dataclass
class Family:
    """Segments that hang from the same ancestors, of similar length, so that they are one attention call."""

    ancestors: list[tuple[int, int]]  # ranges of tokens that all members attend to
    members: list[tuple[int, int]]  # ranges of tokens, each causal in itself


@dataclass
class Layout:
    """Token ids and where to look for the completion tokens: token `n` is predicted by hidden state `source[n]`."""

    input_ids: Tensor  # [1, T] tree, [B, L] padded
    position_ids: Tensor  # like input_ids
    source: Tensor  # [N] index into the flattened hidden states
    target: Tensor  # [N] token ids
    row: Tensor  # [N] which sequence
    families: list[Family] = field(default_factory=list)  # tree only
    attention_mask: Tensor | None = None  # padded only
    index: Any = None  # tree only: gathers of the families, made once for all layers

    @property
    def tokens(self) -> int:
        """Tokens that go through the model, padding included."""
        return self.input_ids.numel()

    def to(self, device: Any) -> Layout:
        for name in ("input_ids", "position_ids", "source", "target", "row", "attention_mask"):
            value = getattr(self, name)
            setattr(self, name, value if value is None else value.to(device))
        return self


def common_prefix(sequences: Sequence[Sequence[int]]) -> int:
    """Length of the beginning that all sequences share."""
    if not sequences:
        return 0
    low, high = (
        min(map(list, sequences)),
        max(map(list, sequences)),
    )  # lists of numbers compare by content
    for i, (a, b) in enumerate(zip(low, high, strict=False)):
        if a != b:
            return i
    return min(len(low), len(high))


def tree_layout(sequences: Sequence[Sequence_]) -> Layout:
    """All sequences in one row: shared beginning of the prompts, then each prompt, then its completions."""
    import torch

    prompts: dict[tuple[int, ...], list[int]] = {}
    for i, sequence in enumerate(sequences):
        prompts.setdefault(tuple(sequence.prompt), []).append(i)
    shared = common_prefix(list(prompts))
    shared = shared if len(prompts) > 1 and shared >= MIN_SHARED else 0

    ids: list[int] = []
    positions: list[int] = []
    source: list[int] = []
    order: list[int] = []  # sequences in the order in which their completions were laid

    def lay(tokens: Sequence[int], position: int) -> tuple[int, int]:
        start = len(ids)
        ids.extend(tokens)
        positions.extend(range(position, position + len(tokens)))
        return start, len(ids)

    root = lay(next(iter(prompts))[:shared], 0) if shared else None
    first: list[tuple[int, int]] = []  # segments right below the root
    below: list[tuple[list[tuple[int, int]], list[tuple[int, int]]]] = []
    for prompt, rows in prompts.items():
        rest = prompt[shared:]
        alone = len(rows) == 1
        # One completion needs no branch: prompt and completion are one causal segment. The last token of a
        # completion predicts nothing that is trained, so it is left out.
        body = (*rest, *sequences[rows[0]].completion[:-1]) if alone else rest
        segment = lay(body, shared) if body else None
        if segment:
            first.append(segment)
        last = segment[0] + len(rest) - 1 if segment and rest else (root[1] - 1 if root else -1)
        branches = []
        for i in rows:
            length = len(sequences[i].completion)
            if length == 0:
                continue
            if last < 0:
                raise ValueError(
                    "a prompt without tokens predicts nothing: give it at least a begin token"
                )
            order.append(i)
            if alone:
                begin = segment[0] + len(rest) if segment else len(ids)
            else:
                begin, end = lay(sequences[i].completion[:-1], len(prompt))
                if end > begin:
                    branches.append((begin, end))
            source.extend([last, *range(begin, begin + length - 1)])
        if branches:
            below.append(([r for r in (root, segment) if r], branches))

    families = [Family([], [root])] if root else []
    families += _alike([root] if root else [], first)
    for ancestors, branches in below:
        families += _alike(ancestors, branches)
    return Layout(
        input_ids=torch.tensor([ids], dtype=torch.long),
        position_ids=torch.tensor([positions], dtype=torch.long),
        source=torch.tensor(source, dtype=torch.long),
        target=torch.tensor([t for i in order for t in sequences[i].completion], dtype=torch.long),
        row=torch.tensor([i for i in order for _ in sequences[i].completion], dtype=torch.long),
        families=families,
    )


def _alike(ancestors: list[tuple[int, int]], members: list[tuple[int, int]]) -> list[Family]:
    """Members in families of like length: the longest is at most 1.5 times the shortest, plus a few tokens."""
    families: list[Family] = []
    for member in sorted(members, key=lambda m: m[1] - m[0], reverse=True):
        length = member[1] - member[0]
        if families:
            longest = families[-1].members[0]
            if longest[1] - longest[0] <= 1.5 * length + 16:
                families[-1].members.append(member)
                continue
        families.append(Family(ancestors, [member]))
    return families


def padded_layout(sequences: Sequence[Sequence_], *, side: str = "right", pad: int = 0) -> Layout:
    """One row a sequence, padded on one side."""
    import torch

    rows = [[*s.prompt, *s.completion] for s in sequences]
    width = max((len(r) for r in rows), default=0)
    ids = torch.full((len(rows), width), pad, dtype=torch.long)
    mask = torch.zeros((len(rows), width), dtype=torch.long)
    positions = torch.zeros((len(rows), width), dtype=torch.long)
    source: list[int] = []
    for i, (row, sequence) in enumerate(zip(rows, sequences, strict=True)):
        start = width - len(row) if side == "left" else 0
        ids[i, start : start + len(row)] = torch.tensor(row)
        mask[i, start : start + len(row)] = 1
        positions[i, start : start + len(row)] = torch.arange(len(row))
        begin = i * width + start + len(sequence.prompt) - 1
        if not sequence.prompt and sequence.completion:
            raise ValueError(
                "a prompt without tokens predicts nothing: give it at least a begin token"
            )
        source.extend(range(begin, begin + len(sequence.completion)))
    return Layout(
        input_ids=ids,
        position_ids=positions,
        source=torch.tensor(source, dtype=torch.long),
        target=torch.tensor([t for s in sequences for t in s.completion], dtype=torch.long),
        row=torch.tensor(
            [i for i, s in enumerate(sequences) for _ in s.completion], dtype=torch.long
        ),
        attention_mask=mask,
    )


def micro_batches(sequences: Sequence[Sequence_], limit: int) -> list[list[int]]:
    """Indices of the sequences, cut so that each cut holds at most `limit` tokens, shared beginnings counted once.

    Neighbours stay neighbours, so completions of one prompt that stand together are computed together. A sequence
    longer than the limit is a micro-batch of its own.
    """
    cuts: list[list[int]] = []
    prompts: dict[tuple[int, ...], None] = {}
    own, shared = (
        0,
        0,
    )  # tokens of completions; length of the beginning that all prompts of the cut share
    for i, sequence in enumerate(sequences):
        prompt = tuple(sequence.prompt)
        own += len(sequence.completion)
        shared = common_prefix([prompt, next(iter(prompts))[:shared]]) if prompts else len(prompt)
        prompts[prompt] = None
        cost = own + shared + sum(len(p) - shared for p in prompts)
        if not cuts or cost > limit:
            cuts.append([])
            prompts, own, shared = {prompt: None}, len(sequence.completion), len(prompt)
        cuts[-1].append(i)
    return cuts
