"""`curate show` and `curate problems`: one trace, one problem or a list of stored problems as text.

A trace is short by default: its origin, its verdicts, its texts. `everything` adds all columns, by
table.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import polars as pl

from curate.console.query import table
from curate.errors import UsageError
from curate.progress import counted
from curate.visible import one_line, visible
from curate.warehouse import Warehouse, schemas
from curate.warehouse.comments import of_view
from curate.warehouse.sql import signal_groups

LABEL = 10  # width of the left column
# printed in full below the others, or not at all
TEXTS = ("question", "prompt", "completion", "reasoning", "answer", "solution", "messages")
HIDDEN = ("prompt_token_ids", "completion_token_ids", "logprobs")
VERDICTS = (
    "verdict", "verified_by", "extracted", "verdict_detail", "judge_verdict", "coherence_verdict",
    "consensus_verdict",
)  # fmt: skip
SHOWN_PROBLEMS = 5
QUESTION = 76  # characters of a question in a list


def show_trace(root: Path, trace_id: str, everything: bool = False) -> str:
    """One trace as text. UsageError if the id matches none or several."""
    warehouse = Warehouse(root)
    frame = warehouse.sql(
        "SELECT * FROM annotated WHERE starts_with(trace_id, ?) LIMIT 2", [trace_id]
    )
    if len(frame) != 1:
        what = "no trace has" if frame.is_empty() else "several traces have"
        raise UsageError(f"{what} an id that starts with '{trace_id}'")
    row = frame.row(0, named=True)
    corpora = warehouse.sql(
        "SELECT DISTINCT dataset || '@' || version AS corpus FROM corpora WHERE trace_id = ? "
        "ORDER BY corpus",
        [row["trace_id"]],
    )["corpus"].to_list()
    lines = _short(row, corpora)
    if everything:
        lines += _all_columns(row)
    for name in ("question", "prompt", "completion") if everything else ("question", "completion"):
        lines += ["", f"--- {name} ---", visible(row[name] or "")]
    if not everything:
        lines += ["", f"(--all shows its prompt and all {len(row)} columns)"]
    return "\n".join(lines)


def _short(row: Mapping[str, Any], corpora: Sequence[str]) -> list[str]:
    """Heading of a trace: its origin and its verdicts."""
    facts = {
        "trace": [row["trace_id"], _if("attempt", row["attempt"] or None)],
        "problem": [
            row["problem_id"],
            _if("source", row["source"]),
            row["split"],
            _if("difficulty", row["difficulty"]),
        ],
        "sampled": [
            row["recipe"],
            _if("by", row["model"]),
            _if("engine", row["engine"]),
            _if("sample", row["sample_index"]),
            _if("temperature", row["temperature"]),
            _if("policy step", row["policy_step"]),
        ],
        "tokens": [
            _text(row["completion_tokens"]),
            _if("of at most", row["max_tokens"]),
            _if("ended by", row["finish_reason"]),
            row["error"],
        ],
        "verdict": [
            row["verdict"] or "not judged yet: curate annotate",
            _if("answer", row["extracted"]),
            _if("reference", row["reference"]),
            row["verdict_detail"],
            _if("verifier", row["verified_by"]),
        ],
        "others": [
            _if(name.removesuffix("_verdict"), row[name])
            for name in VERDICTS
            if name.endswith("_verdict")
        ],
        "signals": [*_signals(row)],
        "corpora": list(corpora) or ["none"],
    }
    lines = []
    for label, values in facts.items():
        shown = [one_line(value) for value in values if value not in (None, "")]
        if shown:
            lines.append(f"{label:<{LABEL}}{', '.join(shown)}")
    return lines


def _signals(row: Mapping[str, Any]) -> Iterator[str]:
    """Unusual signals of the text; empty if it was not measured."""
    if row["characters"] is None:
        return
    yield "well-formed" if row["well_formed"] else "not in its form"
    yield {True: "readable", False: "not readable", None: "readability unknown"}[row["readable"]]
    if row["mixed_language"]:
        yield "mixed languages"
    if row["target_language_share"] is not None:
        yield f"{row['target_language_share']:.0%} in the target language"
    yield counted(row["step_count"] or 0, "step")
    if row["reflection_count"]:
        yield counted(row["reflection_count"], "reflection")
    if row["loop_share"]:
        yield f"{row['loop_share']:.0%} a loop"
    if row["quality"] is not None:
        yield f"quality {row['quality']:.2f}"


def _all_columns(row: Mapping[str, Any]) -> list[str]:
    """Every column with its meaning, grouped by table or group of signals."""
    groups = {
        "trace": list(schemas.types("traces")),
        "problem": list(schemas.types("problems")),
        "verdicts": list(VERDICTS),
        **{f"signals: {group}": columns for group, columns in signal_groups().items()},
    }
    meanings = of_view("annotated")
    rest = [name for name in row if not any(name in columns for columns in groups.values())]
    seen: set[str] = set()
    lines = []
    for title, columns in {**groups, "derived": rest}.items():
        names = [n for n in columns if n in row and n not in seen and n not in (*TEXTS, *HIDDEN)]
        seen.update(names)
        width = max(map(len, names), default=0)
        lines += ["", title]
        lines += [f"  {n:<{width}}  {_text(row[n]):<14}  {meanings.get(n, '')}" for n in names]
    return lines


def _if(label: str, value: object) -> str | None:
    return None if value is None or value == "" else f"{label} {_text(value)}"


def _text(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return "" if value is None else one_line(value)


# -- problems ------------------------------------------------------------------------------------


def list_problems(root: Path) -> str:
    """Stored sets of problems with their counts, the newest version of each."""
    warehouse = Warehouse(root)
    newest = {v.dataset: v for v in warehouse.versions("problems", sealed=True)}
    if not newest:
        return f"no problems in {warehouse.root}: curate problems load FILE stores some"
    rows = []
    for name, version in sorted(newest.items()):
        frame = version.read(["split", "verifier", "source"]).collect()
        rows.append(
            {
                "name": name,
                "version": version.version,
                "problems": len(frame),
                "train": int((frame["split"] == "train").sum()),
                "held-out": int((frame["split"] == "held-out").sum()),
                "verifiers": ", ".join(sorted(frame["verifier"].drop_nulls().unique())) or "none",
                "stored": str(version.manifest.get("sealed_at", ""))[:16].replace("T", " "),
            }
        )
    return table(pl.DataFrame(rows), whole=True)


def show_problems(root: Path, name: str) -> str:
    """Show a stored set of problems (`name` or `name@version`), or one problem by its id."""
    warehouse = Warehouse(root)
    try:
        version = warehouse.latest("problems", name)
    except UsageError as unknown:
        if text := _one_problem(warehouse, name):
            return text
        raise unknown
    frame = version.read().collect()
    counts = frame.group_by("source", "split", "verifier", maintain_order=True).agg(
        problems=pl.len(),
        references=pl.col("reference").is_not_null().sum(),
        solutions=pl.col("solution").is_not_null().sum(),
    )
    first = frame.head(SHOWN_PROBLEMS).select("problem_id", "question", "reference")
    return "\n".join(
        [
            f"{version.ref}: {counted(len(frame), 'problem')}",
            "",
            table(counts, whole=True),
            "",
            *(
                f"{row['problem_id'][:12]}  {_cut(row['question'])}  -> {_text(row['reference'])}"
                for row in first.iter_rows(named=True)
            ),
            "",
            "(curate problems show PROBLEM_ID shows one of them, and how often it was solved)",
        ]
    )


def _one_problem(warehouse: Warehouse, problem_id: str) -> str | None:
    """Show a problem and how often each model solved it; None if no id starts with this."""
    frame = warehouse.sql(
        "SELECT * FROM problems WHERE starts_with(problem_id, ?) LIMIT 2", [problem_id]
    )
    if frame.is_empty():
        return None
    if len(frame) > 1:
        raise UsageError(f"several problems have an id that starts with '{problem_id}'")
    row = frame.row(0, named=True)
    lines = [
        f"{name:<16}  {_text(value)}"
        for name, value in row.items()
        if value is not None and name not in ("question", "solution")
    ]
    lines += ["", "--- question ---", visible(row["question"])]
    if row["solution"]:
        lines += ["", "--- solution ---", visible(row["solution"])]
    rates = warehouse.sql(
        "SELECT model, recipe, samples, correct, pass_rate FROM problem_rates "
        "WHERE problem_id = ? ORDER BY ALL",
        [row["problem_id"]],
    )
    if len(rates):
        lines += ["", table(rates, whole=True)]
    return "\n".join(lines)


def _cut(text: str) -> str:
    line = one_line(text)
    return line if len(line) <= QUESTION else line[: QUESTION - 1] + "…"
