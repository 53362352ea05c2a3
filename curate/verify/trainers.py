"""The verdict of a problem's verifier as a reward, in the signatures of other trainers.

    TRL        reward_funcs: [curate.verify.trainers.accuracy_reward]
    verl       custom_reward_function.path=reward.py, a file that imports compute_score
    OpenRLHF   --reward.remote_url reward.py, a file that imports reward_func

`curate export CORPUS --for TRAINER` writes data and a config that use them. A correct answer gives
1, everything else 0; an answer that cannot be judged is None in TRL, which leaves it out.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from curate.records import Problem
from curate.verify.workers.pool import default_pool

# columns that decide a verdict, besides the completion
FIELDS = ("reference", "verifier", "choices", "tests", "metadata")


def accuracy_reward(
    completions: Sequence[Any], verifier: Sequence[str | None], **columns: Any
) -> list[float | None]:
    """Rewards of TRL's `GRPOTrainer`: one per completion, None if it cannot be judged.

    completions: texts, or lists of messages. Columns of the data set arrive as lists.
    """
    rows = [
        {name: columns[name][i] for name in FIELDS if name in columns} | {"verifier": name}
        for i, name in enumerate(verifier)
    ]
    return _rewards(rows, [_text(completion) for completion in completions])


def compute_score(
    data_source: str,
    solution_str: str,
    ground_truth: str | None,
    extra_info: Mapping[str, Any] | None = None,
    **_: Any,
) -> float:
    """The reward of one completion, for verl."""
    info = dict(extra_info or {})
    row = {name: info.get(name) for name in FIELDS} | {"reference": ground_truth}
    return _rewards([row], [solution_str])[0] or 0.0


def reward_func(
    queries: Sequence[str], prompts: Sequence[str], labels: Sequence[str], **_: Any
) -> Any:
    """Rewards of OpenRLHF, as a tensor. A label is JSON of the columns that decide the verdict; a
    query is the prompt and the completion.
    """
    import torch

    texts = [q.removeprefix(p) for q, p in zip(queries, prompts, strict=True)]
    rewards = [value or 0.0 for value in _rewards([json.loads(label) for label in labels], texts)]
    return torch.tensor(rewards, dtype=torch.float)


def _rewards(rows: Sequence[Mapping[str, Any]], texts: Sequence[str]) -> list[float | None]:
    problems = [Problem("", **{k: v for k, v in row.items() if k in FIELDS}) for row in rows]
    worth = {"correct": 1.0, "wrong": 0.0}
    return [worth.get(v.verdict) for v in default_pool().verify_batch(problems, texts)]


def _text(completion: Any) -> str:
    return completion if isinstance(completion, str) else str(completion[-1]["content"] or "")
