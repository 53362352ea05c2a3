"""Arrange token sequences in one call of the model: as a tree without padding, or padded.

In a **tree**, all tokens of a micro-batch are in one row. A segment attends to itself (causally)
and to its ancestors:

    template ── question 1 ─┬─ completion 1      Prompts with a common beginning (a template, a
             │              └─ completion 2      system prompt) share it, and completions of one
             └─ question 2 ─── completion 3      prompt share the prompt: each token is computed
                                                 once, and its gradient sums over its descendants.

A causal model gives the same hidden states either way, since the state of a token depends only on
the tokens before it. Examples packed into one row never see each other: they are different roots or
branches. **Padded** rows serve models whose attention cannot be replaced, and are the reference
that the tests compare the tree with.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

MIN_SHARED = 8  # tokens: a shorter common beginning is not worth a separate segment

Span = tuple[int, int]  # start and end (exclusive) of a range of tokens


@dataclass(frozen=True)
class PromptCompletion:
    """A prompt and its completion as token ids; log-probs are computed for the completion."""

    prompt: Sequence[int]
    completion: Sequence[int]

    def __len__(self) -> int:
        return len(self.prompt) + len(self.completion)


@dataclass
class SegmentFamily:
    """Segments with the same ancestors and similar lengths: one call of attention."""

    ancestors: list[Span]  # all members attend to these
    members: list[Span]  # each causal in itself


@dataclass
class Layout:
    """Token ids of one call, and where the completion tokens are predicted.

    Token `n` of the `N` completion tokens is predicted by hidden state `source[n]`.
    """

    input_ids: Tensor  # [1, T] tree, [B, L] padded
    position_ids: Tensor  # like input_ids
    source: Tensor  # [N] index into the flattened hidden states
    target: Tensor  # [N] token ids
    row: Tensor  # [N] the sequence that each token belongs to
    order: list[int]  # the sequences in the order of their tokens, without empty ones
    families: list[SegmentFamily] = field(default_factory=list)  # tree only
    attention_mask: Tensor | None = None  # padded on the left only
    attention: str = ""  # name of the attention implementation; empty: that of the layout
    sequences: Sequence[PromptCompletion] = ()
    index: Any = None  # tree only: the families as index tensors, built by the first call

    @property
    def tokens(self) -> int:
        """Number of tokens that go through the model, padding included."""
        return self.input_ids.numel()

    def permutation(self, other: Layout) -> Tensor:
        """Return `[N]` indices that put the completion tokens into the order of another layout."""
        place = torch.empty(len(self.sequences), dtype=torch.long)
        place[torch.tensor(self.order, dtype=torch.long)] = torch.arange(len(self.order))
        lengths = torch.tensor([len(self.sequences[i].completion) for i in self.order])
        starts = torch.cat([torch.zeros(1, dtype=torch.long), lengths.cumsum(0)])
        parts = [
            torch.arange(len(self.sequences[i].completion)) + starts[place[i]] for i in other.order
        ]
        indices = torch.cat(parts) if parts else torch.empty(0, dtype=torch.long)
        return indices.to(self.source.device)

    def to(self, device: Any) -> Layout:
        """Move all tensors to a device, in place."""
        for name in ("input_ids", "position_ids", "source", "target", "row", "attention_mask"):
            value = getattr(self, name)
            setattr(self, name, value if value is None else value.to(device))
        return self


def common_prefix(sequences: Sequence[Sequence[int]]) -> int:
    """Return the length of the prefix that all sequences share."""
    if not sequences:
        return 0
    # The prefix of the lowest and the highest in lexical order is common to all.
    low, high = min(map(list, sequences)), max(map(list, sequences))
    for i, (a, b) in enumerate(zip(low, high, strict=False)):
        if a != b:
            return i
    return min(len(low), len(high))


def tree_layout(sequences: Sequence[PromptCompletion], *, whole: bool = False) -> Layout:
    """Arrange all sequences in one row: the prompts' common prefix, each prompt, then its
    completions.

    The last token of a completion predicts no trained token, so it is left out unless `whole` is
    set. Raises ValueError for an empty prompt with a completion.
    """
    end = None if whole else -1
    prompts: dict[tuple[int, ...], list[int]] = {}
    for i, sequence in enumerate(sequences):
        prompts.setdefault(tuple(sequence.prompt), []).append(i)
    shared = common_prefix(list(prompts))
    shared = shared if len(prompts) > 1 and shared >= MIN_SHARED else 0

    ids: list[int] = []
    positions: list[int] = []
    source: list[int] = []
    order: list[int] = []

    def append(tokens: Sequence[int], position: int) -> Span:
        start = len(ids)
        ids.extend(tokens)
        positions.extend(range(position, position + len(tokens)))
        return start, len(ids)

    root = append(next(iter(prompts))[:shared], 0) if shared else None
    top: list[Span] = []  # segments directly below the root of the tree
    below: list[tuple[list[Span], list[Span]]] = []  # ancestors and branches of each prompt
    for prompt, rows in prompts.items():
        rest = prompt[shared:]
        alone = len(rows) == 1
        # A single completion needs no branch: prompt and completion form one causal segment.
        body = (*rest, *sequences[rows[0]].completion[:end]) if alone else rest
        segment = append(body, shared) if body else None
        if segment:
            top.append(segment)
        last = segment[0] + len(rest) - 1 if segment and rest else (root[1] - 1 if root else -1)
        branches = []
        for i in rows:
            length = len(sequences[i].completion)
            if length == 0:
                continue
            _check_prompt(last >= 0)
            order.append(i)
            if alone:
                begin = segment[0] + len(rest) if segment else len(ids)
            else:
                begin, stop = append(sequences[i].completion[:end], len(prompt))
                if stop > begin:
                    branches.append((begin, stop))
            source.extend([last, *range(begin, begin + length - 1)])
        if branches:
            below.append(([span for span in (root, segment) if span], branches))

    families = [SegmentFamily([], [root])] if root else []
    families += _of_similar_length([root] if root else [], top)
    for ancestors, branches in below:
        families += _of_similar_length(ancestors, branches)
    return Layout(
        input_ids=torch.tensor([ids], dtype=torch.long),
        position_ids=torch.tensor([positions], dtype=torch.long),
        source=torch.tensor(source, dtype=torch.long),
        target=torch.tensor([t for i in order for t in sequences[i].completion], dtype=torch.long),
        row=torch.tensor([i for i in order for _ in sequences[i].completion], dtype=torch.long),
        order=order,
        families=families,
        sequences=sequences,
    )


def _of_similar_length(ancestors: list[Span], members: list[Span]) -> list[SegmentFamily]:
    """Group members so that the longest is at most 1.5 times the shortest plus 16 tokens.

    A family is padded to its longest member; a family per length would be too many small calls.
    """
    families: list[SegmentFamily] = []
    for member in sorted(members, key=lambda m: m[1] - m[0], reverse=True):
        length = member[1] - member[0]
        if families:
            longest = families[-1].members[0]
            if longest[1] - longest[0] <= 1.5 * length + 16:
                families[-1].members.append(member)
                continue
        families.append(SegmentFamily(ancestors, [member]))
    return families


def padded_layout(
    sequences: Sequence[PromptCompletion], *, side: str = "right", pad: int = 0
) -> Layout:
    """Arrange one sequence per row, padded on one side. Raises ValueError for an empty prompt.

    Padding on the right needs no attention mask: no token of a sequence sees what comes after it.
    """
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
        positions[i, start:] = torch.arange(width - start)
        begin = i * width + start + len(sequence.prompt) - 1
        _check_prompt(bool(sequence.prompt) or not sequence.completion)
        source.extend(range(begin, begin + len(sequence.completion)))
    return Layout(
        input_ids=ids,
        position_ids=positions,
        source=torch.tensor(source, dtype=torch.long),
        target=torch.tensor([t for s in sequences for t in s.completion], dtype=torch.long),
        row=torch.tensor(
            [i for i, s in enumerate(sequences) for _ in s.completion], dtype=torch.long
        ),
        order=[i for i, s in enumerate(sequences) if s.completion],
        attention_mask=mask if side == "left" else None,
        sequences=sequences,
    )


def _check_prompt(predicted: bool) -> None:
    if not predicted:
        raise ValueError("a prompt without tokens predicts nothing: give it at least a begin token")


def micro_batches(
    sequences: Sequence[PromptCompletion],
    limit: int,
    kind: Callable[[int], tuple[int, bool]] = lambda length: (0, False),
) -> list[list[int]]:
    """Return the indices of the sequences in micro-batches of at most `limit` computed tokens.

    `kind` maps the length of a sequence to a group and whether it is padded. A micro-batch never
    mixes groups. In a tree shared prefixes count once, and neighbours stay neighbours, so that
    completions of one prompt are computed together. Padded sequences are sorted by length, and
    padding counts. A sequence longer than the limit is a micro-batch by itself.
    """
    kinds = [kind(len(s)) for s in sequences]

    def place(i: int) -> tuple[tuple[int, bool], int]:
        return kinds[i], -len(sequences[i]) if kinds[i][1] else 0

    cuts: list[list[int]] = []
    cost: TreeCost | PaddedCost = TreeCost()
    for i in sorted(range(len(sequences)), key=place):
        if not cuts or kinds[i] != kinds[cuts[-1][0]] or cost.add(sequences[i]) > limit:
            cuts.append([])
            cost = PaddedCost() if kinds[i][1] else TreeCost()
            cost.add(sequences[i])
        cuts[-1].append(i)
    return cuts


class PaddedCost:
    """Tokens of a padded micro-batch: the longest sequence times the number of sequences."""

    def __init__(self) -> None:
        self.rows = self.width = 0

    def add(self, sequence: PromptCompletion) -> int:
        """Add a sequence and return the tokens of the micro-batch with it."""
        self.rows, self.width = self.rows + 1, max(self.width, len(sequence))
        return self.rows * self.width


class TreeCost:
    """Tokens of a tree: the prompts' common prefix, the rests of the prompts, and all
    completions.
    """

    def __init__(self) -> None:
        self.prompts: dict[tuple[int, ...], None] = {}
        self.completions = self.shared = 0

    def add(self, sequence: PromptCompletion) -> int:
        """Add a sequence and return the tokens of the micro-batch with it."""
        prompt = tuple(sequence.prompt)
        self.completions += len(sequence.completion)
        if self.prompts:
            self.shared = common_prefix([prompt, next(iter(self.prompts))[: self.shared]])
        else:
            self.shared = len(prompt)
        self.prompts[prompt] = None
        rest = sum(len(p) - self.shared for p in self.prompts)
        return self.completions + self.shared + rest
