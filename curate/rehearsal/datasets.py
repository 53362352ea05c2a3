"""Rows in the place of data sets that would need a network, with the columns of the real ones.

The columns and numbers of rows are those of the cards on the Hub. Of a data set that is not in the
table, the columns are the ones that the config names: whether they exist can then not be rehearsed.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from curate.problems.hub import Hub

ROWS = 6  # of a stand-in: two can be held out, and every stage has some
Row = dict[str, Any]


@dataclass(frozen=True)
class Known:
    """A data set on the Hub: its columns as rows of sums, and its number of rows by split."""

    row: Callable[[int], Row]
    rows: dict[str, int]


def _sum(number: int) -> tuple[str, str, str]:
    """Question, answer and worked solution; different for each number."""
    a, b, c = 12 + 3 * number, 7 + number, 2 + 2 * number
    question = f"A shelf holds {a} books, {b} more arrive and {c} are lent. How many are left?"
    solution = f"First {a} + {b} = {a + b}. Then {a + b} - {c} = {a + b - c}."
    return question, str(a + b - c), solution


def _aime(number: int) -> Row:
    question, answer, solution = _sum(number)
    return {"id": number, "problem": question, "solution": solution, "answer": answer,
            "url": "", "year": "2024"}  # fmt: skip


def _deepscaler(number: int) -> Row:
    question, answer, solution = _sum(number)
    return {"problem": question, "answer": answer, "solution": solution}


def _gsm8k(number: int) -> Row:
    question, answer, solution = _sum(number)
    return {"question": question, "answer": f"{solution}\n#### {answer}"}


def _arc(number: int) -> Row:
    question, answer, _ = _sum(number)
    texts = [answer, *(str(int(answer) + step) for step in (1, 2, 3))]
    choices = {"text": texts, "label": ["A", "B", "C", "D"]}
    return {"id": f"row-{number}", "question": question, "choices": choices, "answerKey": "A"}


# Rows: the cards of the data sets on the Hub.
KNOWN: dict[str, Known] = {
    "agentica-org/DeepScaleR-Preview-Dataset": Known(_deepscaler, {"train": 40_315}),
    "openai/gsm8k": Known(_gsm8k, {"train": 7_473, "test": 1_319}),
    "allenai/ai2_arc": Known(_arc, {"train": 1_119, "validation": 299, "test": 1_172}),
    "HuggingFaceH4/aime_2024": Known(_aime, {"train": 30}),
}


def expected_rows(source: Hub) -> int | None:
    """Rows that a source on the Hub gives, if that is known without a network."""
    known = KNOWN.get(source.dataset)
    if known is None:
        return source.limit
    counts = [known.rows.get(part) for part in source.parts]
    if None in counts:
        return source.limit
    return sum(min(count or 0, source.limit or count or 0) for count in counts)


def write_rows(path: Path, source: Hub) -> bool:
    """Write the stand-in of a source as JSON Lines; return whether its columns are real ones."""
    known = KNOWN.get(source.dataset)
    offset = sum(source.dataset.encode()) % 97  # other questions than those of other sources
    make = known.row if known else _as_named(source)
    write_lines(path, [make(offset + number) for number in range(ROWS)])
    return known is not None


def write_lines(path: Path, rows: Sequence[Row]) -> None:
    """Write rows as JSON Lines."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    path.write_text(text, encoding="utf-8")


def _as_named(source: Hub) -> Callable[[int], Row]:
    """A maker of rows in the columns that a source names."""

    def row(number: int) -> Row:
        question, answer, solution = _sum(number)
        values: Row = {"question": question, "solution": solution, "reference": answer}
        if source.verifier == "choice":
            values["choices"] = [answer, str(int(answer) + 1), str(int(answer) + 2)]
            values["reference"] = "0" if source.reference_is_index else "A"
        if source.verifier == "code":
            values["tests"] = json.dumps({"inputs": ["1\n"], "outputs": ["1\n"]})
        if source.reference_pattern:
            values["reference"] = _matching(source.reference_pattern, str(values["reference"]))
        wanted = {"question", *source.columns}
        if source.verifier:
            wanted |= {"reference"} if source.verifier != "code" else {"tests"}
        return {
            source.columns.get(name, name): values.get(name, "en" if "language" in name else "x")
            for name in sorted(wanted)
        }

    return row


def _matching(pattern: str, answer: str) -> str:
    """A text in which a pattern with one group, such as `#### (.+)`, matches the answer."""
    head, _, rest = pattern.partition("(")
    return head.replace("\\", "") + answer + rest.partition(")")[2].replace("\\", "").rstrip("$")


def sums(count: int) -> list[Row]:
    """Problems of the stand-in, in columns of ours."""
    rows = [_sum(number) for number in range(count)]
    return [
        {"question": q, "reference": a, "solution": s, "verifier": "math", "target_language": "en"}
        for q, a, s in rows
    ]
