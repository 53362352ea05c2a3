"""Formats of foreign trace sets, and their conversion to one row per trace in our columns.

    messages      a conversation: OpenAI messages (also with parts, reasoning, tool calls), ShareGPT
    openr1        problem, answer, generations: a list of traces (OpenR1-Math and its relatives)
    openthoughts  problem, deepseek_reasoning, deepseek_solution (the metadata of OpenThoughts)
    preference    chosen and rejected (DPO): two traces per row, with the label `preference`
    models        struct columns of one type, one per model, each with a completion
    pairs         a question, and a completion (text, messages, a list) or reasoning and summary
    problems      questions and references without any trace

(`sharegpt` is another name of `messages`.) Each is a value of the key `layout`. To add one: its
name in `Layout`, how it is recognised in `choose_layout`, how a row becomes traces in `_answers`,
and the fields it reads in `fields_read`. File types (JSONL, Parquet, CSV) are read by
curate/files.py, names of columns are in columns.py, marks of reasoning in delimiters.py.

Traces come out in our form `r1` (`<think>…</think>` and a summary) if they hold reasoning. The gold
answer never becomes part of a trace. The outcome of every row is counted.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import polars as pl

from curate.errors import UsageError
from curate.imports.columns import Table, model_columns
from curate.imports.delimiters import ends_in_opener, form_of, in_our_delimiters, without_opener
from curate.prompts.conversations import (
    Message,
    holds_turns,
    is_rendered,
    last_answer,
    messages_of,
    object_text,
    rendered_messages,
)
from curate.prompts.forms import CLOSE, OPEN

Layout = Literal[
    "messages", "openr1", "openthoughts", "preference", "models", "pairs", "problems", "sharegpt"
]

MESSAGE = pl.Struct(
    dict.fromkeys(("role", "content", "reasoning", "tool_calls", "name"), pl.String)
)
_TRACE: dict[str, Any] = {
    "row": pl.UInt32,
    "sample": pl.UInt32,
    "question": pl.String,
    "completion": pl.String,
    "messages": pl.List(MESSAGE),
    "context": pl.String,
    "finish_reason": pl.String,
    "model": pl.String,
    "preference": pl.String,
}
_TEXTS = ("model", "source", "domain", "verifier", "target_language", "split", "solution")
# endings of worked solutions in data sets; the first group is the answer
_BOXED = r"(?s).*\\boxed\s*\{((?:[^{}]|\{(?:[^{}]|\{[^{}]*\})*\})*)\}"
_ENDINGS = (r"(?m)^\s*####\s*(.+?)\s*\z", _BOXED, r"(?m)^\s*(?:A|Answer|答案)\s*[:：]\s*(.+?)\s*\z")
_LONG = 200  # characters: a longer answer may be a model's response


@dataclass(frozen=True)
class Plan:
    """Reading plan of a table: its format, and the columns of our fields and labels."""

    layout: Layout
    fields: Mapping[str, str]
    labels: Mapping[str, str] = field(default_factory=dict)
    delimiters: tuple[tuple[str, str], ...] = ()
    reference_pattern: str | None = None
    given: frozenset[str] = frozenset()  # fields that the user mapped
    skip_invalid: bool = False  # leave out rows whose values are not text

    def columns(self) -> list[str]:
        """Every column that is read."""
        return [*self.fields.values(), *self.labels.values()]


def choose_layout(
    table: Table, fields: Mapping[str, str], given: Mapping[str, str], where: str
) -> Layout:
    """Detect the format from the columns. If none matches, `UsageError` says what to
    configure.
    """
    mapped = {"completion", "reasoning"} & set(given)
    if not mapped and "chosen" in fields and "rejected" in fields:
        return "preference"
    if not mapped and "turns" in fields and not _has_generations(table, fields):
        return "messages"
    if "question" not in fields:
        raise UsageError(
            f"{where}: no column is known to hold the question; there are "
            f"{', '.join(table.schema)}. Say which one, for example columns.question=problem"
        )
    if not mapped and "deepseek_reasoning" in table.schema:
        return "openthoughts"
    if "completion" in fields:
        return "openr1" if _has_generations(table, fields) else "pairs"
    if "reasoning" in fields:
        return "pairs"
    if "summary" in fields:  # a prediction that contains its reasoning, since no other column does
        return "pairs"
    if model_columns(table.schema):
        return "models"
    _check_no_trace(table, fields, given, where)
    return "problems"


def _has_generations(table: Table, fields: Mapping[str, str]) -> bool:
    name = fields.get("completion", "")
    return name in ("generations", "completions", "responses") and "question" in fields


def fields_read(layout: str, fields: dict[str, str]) -> set[str]:
    """The fields that a format reads."""
    unread = {
        "messages": {"question", "completion", "chosen", "rejected", "reasoning", "summary"},
        "preference": {"completion", "reasoning", "summary"},
        "models": {"completion", "turns", "reasoning", "summary"},
        "problems": {"completion", "turns", "reasoning", "summary", "chosen", "rejected"},
        "openthoughts": {"completion", "turns", "chosen", "rejected"},
    }.get(layout, {"turns", "chosen", "rejected"})
    if layout == "pairs" and "completion" in fields:
        unread = unread | {"summary"}
    return set(fields) - unread


def _check_no_trace(
    table: Table, fields: Mapping[str, str], given: Mapping[str, str], where: str
) -> None:
    """`UsageError` if a column that no field claims may hold traces, or the reference may be
    one.
    """
    if "reward_model" in table.schema:  # verl: prompts for RL
        return
    claimed = {name.split(".")[0] for name in fields.values()}
    for name in table.schema:
        if name in claimed or not table.is_text(name) or "question" in name:
            continue
        if table.schema[name] == pl.String and table.mean_length(name) > _LONG:
            raise UsageError(
                f"{where}: no column is known to hold the trace, and '{name}' holds long texts: "
                f"say columns.completion={name}, or layout=problems if it holds none; there are "
                f"{', '.join(table.schema)}"
            )
    answer = fields.get("reference")
    if answer is None or "reference" in given or not table.is_text(answer):
        return
    texts = table.text(answer)
    whole = (final_answers(texts, None) == texts).mean() == 1
    if whole and (texts.str.len_chars().mean() or 0) > _LONG:  # type: ignore[operator]
        raise UsageError(
            f"{where}: '{answer}' may be the reference or a model's response. Say "
            f"columns.reference={answer} or columns.completion={answer}"
        )


def read_traces(table: Table, plan: Plan, where: str) -> tuple[pl.DataFrame, Counter[str]]:
    """Return one row per trace (per problem, for `problems`), and counts of the rows by outcome.

    Columns: question, completion, form, finish_reason, and, if the table has them, messages, tools,
    context (earlier turns, as JSON), model, labels (JSON) and columns of the problem.
    """
    counts: Counter[str] = Counter()
    if _is_plain(table, plan):
        frame = _plain_traces(table, plan, where)
    else:
        rows = list(_traces(table, plan, where, counts))
        frame = pl.DataFrame(rows, schema=_TRACE, orient="row")
    frame = frame.join(
        _row_columns(table, plan, where), on="row", how="left", maintain_order="left", suffix="_row"
    )
    if "model_row" in frame.columns:
        frame = frame.with_columns(pl.coalesce("model", "model_row").alias("model")).drop(
            "model_row"
        )
    frame = _per_sample(table, plan, frame)
    frame = _with_labels(table, plan, frame)
    return _finished(frame, plan), counts


def _is_plain(table: Table, plan: Plan) -> bool:
    """Whether question and completion are columns of text, so that rows need no parsing."""
    used = [
        plan.fields[name]
        for name in ("question", "completion", "reasoning", "summary")
        if name in plan.fields
    ]
    if plan.layout not in ("pairs", "openthoughts", "problems"):
        return False
    if {"system", "history"} & set(plan.fields) or not all(map(table.is_text, used)):
        return False
    question = table.text(plan.fields["question"])
    return not (is_rendered(question) | holds_turns(question)).any()


def _plain_traces(table: Table, plan: Plan, where: str) -> pl.DataFrame:
    fields, height = plan.fields, table.frame.height
    frame = pl.DataFrame(
        {
            "row": pl.int_range(height, dtype=pl.UInt32, eager=True),
            "question": _question_texts(table, plan),
        }
    )
    if plan.layout == "problems":
        completion = pl.Series([None] * height, dtype=pl.String)
    elif plan.layout == "pairs" and "completion" in fields:
        completion = table.text(fields["completion"])
        if "reasoning" in fields:
            completion = _composed(table.text(fields["reasoning"]), completion)
    elif "reasoning" in fields:
        _check_summary(table, plan, where)
        named = "summary" in fields
        summary = table.text(fields["summary"]) if named else pl.Series([""] * height)
        completion = _composed(table.text(fields["reasoning"]), summary)
    else:
        completion = table.text(fields["summary"])
    missing = [pl.lit(None, dtype=kind).alias(name) for name, kind in _TRACE.items()]
    frame = frame.with_columns(completion.alias("completion"), sample=pl.lit(0, dtype=pl.UInt32))
    return frame.with_columns(
        column for column in missing if column.meta.output_name() not in frame.columns
    ).select(list(_TRACE))


def _question_texts(table: Table, plan: Plan) -> pl.Series:
    """The question; an instruction (Alpaca) is joined with its input."""
    name = plan.fields["question"]
    question = table.text(name)
    if name == "instruction" and table.schema.get("input") == pl.String:
        given = table.text("input").fill_null("").str.strip_chars()
        both = pl.DataFrame({"q": question, "i": given}).select(
            pl.when(pl.col("i") == "")
            .then("q")
            .otherwise(pl.concat_str("q", "i", separator="\n\n"))
        )
        return both.to_series()
    return question


def _composed(reasoning: pl.Series, summary: pl.Series) -> pl.Series:
    """Reasoning and summary as one text; only the summary if the reasoning is missing."""
    thought = pl.col("reasoning").str.strip_chars()
    frame = pl.DataFrame(
        {"reasoning": reasoning, "summary": summary.fill_null("").str.strip_chars()}
    )
    whole = pl.concat_str(pl.lit(f"{OPEN}\n"), thought, pl.lit(f"\n{CLOSE}\n\n"), "summary")
    return frame.select(
        pl.when(thought.fill_null("") != "").then(whole).otherwise("summary")
    ).to_series()


def _check_summary(table: Table, plan: Plan, where: str) -> None:
    """Raise `UsageError` if the only answer next to the reasoning may be the gold one."""
    if "summary" in plan.fields or "reference" not in plan.fields or "reference" in plan.given:
        return
    name = plan.fields["reference"]
    if name in ("answer", "final_answer"):
        raise UsageError(
            f"{where}: '{name}' may be the gold answer or what the model answered after "
            f"'{plan.fields['reasoning']}'. Say columns.reference={name} or columns.summary={name}"
        )


def _traces(
    table: Table, plan: Plan, where: str, counts: Counter[str]
) -> Iterator[tuple[Any, ...]]:
    """The traces of rows with nested values, in the columns of `_TRACE`."""
    fields = plan.fields

    def column(name: str) -> Sequence[Any]:
        return table.values(fields[name]) if name in fields else [None] * table.frame.height

    plain = "question" in fields and table.is_text(fields["question"])
    questions = list(_question_texts(table, plan)) if plain else column("question")
    answers = _answers(table, plan)
    thoughts, turns, systems = column("reasoning"), column("turns"), column("system")
    histories = column("history")
    if plan.layout in ("messages", "sharegpt"):
        questions = [None] * table.frame.height
    for row, question in enumerate(questions):
        try:
            prompt = [] if question is None else messages_of(question)
            if plan.layout in ("messages", "sharegpt") or (
                plan.layout == "preference" and turns[row] is not None and not prompt
            ):
                prompt = messages_of(turns[row] or [])
            if histories[row]:
                prompt = [*_earlier(histories[row]), *prompt]
            if isinstance(systems[row], str) and systems[row].strip():
                prompt = [Message("system", systems[row]), *prompt]
            produced = list(answers(row))
            if plan.layout in ("messages", "sharegpt"):
                produced = [_Answer([])]
            elif plan.layout == "problems":
                produced = [_Answer([Message("assistant", "")])]
        except ValueError as error:
            if not plan.skip_invalid:
                raise UsageError(
                    f"{where}, row {row + 1}: {error}; name another column, or leave such rows "
                    "out with skip_invalid=true"
                ) from error
            counts["that cannot be read as text (skip_invalid)"] += 1
            continue
        if not produced:
            counts["without a completion"] += 1
        for sample, answer in enumerate(produced):
            thought = _thought(thoughts[row], sample, len(produced))
            yield _trace(row, sample, prompt, answer, thought, plan, counts)


def _thought(value: Any, sample: int, samples: int) -> str | None:
    """The reasoning of one completion: of its row, or of its place in a list of as many."""
    if isinstance(value, list):
        if len(value) not in (1, samples):
            raise ValueError(f"{len(value)} texts of reasoning for {samples} completions")
        value = value[0 if len(value) == 1 else sample]
    if isinstance(value, Mapping):
        return object_text(value)
    return value if isinstance(value, str) else None


@dataclass
class _Answer:
    """One completion of a row: its messages, model and preference."""

    messages: list[Message]
    finish_reason: str | None = None
    model: str | None = None
    preference: str | None = None


def _earlier(history: Any) -> list[Message]:
    """Turns before an instruction (Alpaca): pairs of request and answer, or messages."""
    if isinstance(history, str):  # in a CSV file
        history = json.loads(history)
    if isinstance(history, list) and all(isinstance(pair, list) for pair in history):
        roles = ("user", "assistant")
        return [
            Message(role, str(text or ""))
            for pair in history
            for role, text in zip(roles, pair, strict=False)
        ]
    return messages_of(history)


def _answers(table: Table, plan: Plan) -> Any:
    """Return a function from a row number to the completions of that row."""
    fields = plan.fields
    if plan.layout == "preference":
        both = [(name, table.values(fields[name])) for name in ("chosen", "rejected")]
        return lambda row: (
            _Answer(_assistant(values[row]), preference=name)
            for name, values in both
            if values[row] is not None
        )
    if plan.layout == "models":
        models = model_columns(table.schema)
        values = {name: table.values(f"{name}.{text}") for name, text in models.items()}
        return lambda row: (
            _Answer([Message("assistant", texts[row])], model=name)
            for name, texts in values.items()
            if texts[row] is not None
        )
    if "completion" in fields:
        completions = table.values(fields["completion"])
        return lambda row: _several(completions[row])
    if "summary" in fields:
        summaries = table.values(fields["summary"])
        return lambda row: _several(summaries[row])
    return lambda row: iter([_Answer([Message("assistant", "")])])


def _several(value: Any) -> Iterator[_Answer]:
    """Completions in a value: text, a message, a conversation, or a list of completions."""
    if value is None:
        return
    if isinstance(value, Mapping) and isinstance(value.get("choices"), list):
        value = value["choices"]  # the response of an OpenAI server
    if isinstance(value, list) and not (value and _is_turn(value[0])):
        for item in value:
            yield from _several(item)
        return
    reason = value.get("finish_reason") if isinstance(value, Mapping) else None
    if isinstance(value, Mapping) and isinstance(value.get("message"), Mapping):
        value = value["message"]
    yield _Answer(_assistant(value), finish_reason=reason)


def _is_turn(value: Any) -> bool:
    return isinstance(value, Mapping) and bool(value.get("role") or value.get("from"))


def _assistant(value: Any) -> list[Message]:
    """Convert a completion to messages: text and text objects are one turn of the assistant."""
    if isinstance(value, str):
        whole = value.lstrip().startswith("Human: ")  # a conversation as text, with its request
        return (rendered_messages(value) if whole else []) or [Message("assistant", value)]
    if isinstance(value, Mapping) and not _is_turn(value):
        thought = next(
            (value[k] for k in ("reasoning_content", "reasoning", "thinking") if value.get(k)), None
        )
        return [Message("assistant", object_text(value), thought)]
    return messages_of(value)


def _trace(
    row: int,
    sample: int,
    prompt: list[Message],
    answer: _Answer,
    reasoning: str | None,
    plan: Plan,
    counts: Counter[str],
) -> tuple[Any, ...]:
    """One trace, in the columns of `_TRACE`: the last turn of the assistant, and what came before
    it.
    """
    talk = answer.messages
    if prompt and talk[: len(prompt)] != prompt:  # preference pairs often repeat the prompt
        talk = [*prompt, *talk]
    last = last_answer(talk)
    before = talk[:last]
    user_turn = next((i for i in range(len(before) - 1, -1, -1) if before[i].role == "user"), None)
    question = before[user_turn].content if user_turn is not None else None
    completion = None
    if last is None:
        counts["without a turn of the assistant"] += 1
    elif user_turn is None:
        counts["without a turn of the user"] += 1
    if last is not None:
        turn = talk[last]
        thought = turn.reasoning or reasoning
        completion = turn.text()
        if thought and OPEN not in completion:
            completion = f"{OPEN}\n{thought.strip()}\n{CLOSE}\n\n{completion.strip()}"
    spoken = [message for message in before if message.role != "system"]
    context = None
    if len(spoken) > 1:
        context = json.dumps([message.row() for message in spoken], ensure_ascii=False)
    _count_turns(talk, last, spoken, plan, counts)
    kept = [message.row() for message in talk] if len(talk) > 1 or context else None
    if plan.layout == "problems":
        completion, kept = None, None
    return (
        *(row, sample, question, completion, kept, context),
        *(answer.finish_reason, answer.model, answer.preference),
    )


def _count_turns(
    talk: list[Message],
    last: int | None,
    spoken: list[Message],
    plan: Plan,
    counts: Counter[str],
) -> None:
    if plan.layout not in ("messages", "sharegpt", "preference", "pairs") or last is None:
        return
    if any(message.role == "tool" or message.tool_calls for message in talk):
        counts["with tool calls kept as messages"] += 1
    elif len(spoken) > 1:
        counts["of several turns kept as messages"] += 1
    if talk[0].role == "system":
        counts["with a system message"] += 1
    if last < len(talk) - 1:
        counts["with turns after the last one of the assistant"] += 1


def _row_columns(table: Table, plan: Plan, where: str) -> pl.DataFrame:
    """The columns of each row other than question and completion."""
    columns = [pl.int_range(table.frame.height, dtype=pl.UInt32, eager=True).alias("row")]
    columns += [
        table.text(plan.fields[name]).alias(name)
        for name in _TEXTS
        if name in plan.fields and table.is_text(plan.fields[name])
    ]
    if "tools" in plan.fields:
        name = plan.fields["tools"]
        values = table.values(name)
        texts = [v if v is None or isinstance(v, str) else json.dumps(v) for v in values]
        columns.append(pl.Series("tools", texts, dtype=pl.String))
    if "reference" in plan.fields:
        columns.append(_references(table, plan.fields["reference"], where).alias("reference"))
    for name, kind in (("difficulty", pl.Float64), ("completion_tokens", pl.Int32)):
        if name in plan.fields and table.is_text(plan.fields[name]):
            numbers = table.text(plan.fields[name]).cast(kind, strict=False)
            columns.append(numbers.alias(name))
    frame = pl.DataFrame(columns)
    if "difficulty" in frame.columns:  # ours is between 0 and 1; other scales are labels
        inside = pl.col("difficulty").is_between(0, 1).all()
        frame = frame.with_columns(pl.when(inside).then("difficulty").alias("difficulty"))
    return _with_answers(frame, plan)


def _references(table: Table, name: str, where: str) -> pl.Series:
    """References as text. A list of one becomes its item; several stay a list; a struct needs a
    field name.
    """
    if table.is_text(name):
        return table.text(name)
    texts: list[str | None] = []
    for value in table.values(name):
        if isinstance(value, list) and all(isinstance(v, str | int | float) for v in value):
            texts.append(", ".join(map(str, value)) or None)
        elif isinstance(value, Mapping):
            fields = ", ".join(f"columns.reference={name}.{key}" for key in value)
            raise UsageError(
                f"{where}: '{name}' holds objects; say which field is the reference: {fields}"
            )
        elif isinstance(value, list):
            raise UsageError(
                f"{where}: '{name}' holds lists of objects; say columns.reference={name}.FIELD"
            )
        else:
            texts.append(value if value is None or isinstance(value, str) else str(value))
    return pl.Series(name, texts, dtype=pl.String)


def _with_answers(frame: pl.DataFrame, plan: Plan) -> pl.DataFrame:
    """Replace references that are worked solutions by their final answers; keep the solutions."""
    if "reference" in frame.columns:
        short = final_answers(frame.get_column("reference"), plan.reference_pattern)
        changed = short.ne_missing(frame.get_column("reference"))
        worked = pl.when(changed).then("reference")
        own = [pl.col("solution")] if "solution" in frame.columns else []
        frame = frame.with_columns(pl.coalesce(*own, worked).alias("solution"), reference=short)
    if "solution" in frame.columns:
        own = [pl.col("reference")] if "reference" in frame.columns else []
        boxed = pl.col("solution").str.extract(_BOXED, 1)
        frame = frame.with_columns(pl.coalesce(*own, boxed).alias("reference"))
    return frame


def final_answers(texts: pl.Series, pattern: str | None) -> pl.Series:
    """The final answer of each reference: the group of `pattern`, else the end of a worked
    solution.
    """
    text = pl.col("text")
    if pattern is not None:
        answer = text.str.extract(pattern, 1).str.strip_chars()
    else:
        worked = text.str.strip_chars().str.contains("\n") | (text.str.len_chars() > 80)
        endings = [text.str.strip_chars_end().str.extract(ending, 1) for ending in _ENDINGS]
        answer = pl.coalesce(pl.when(worked).then(pl.coalesce(endings)), text)
    return pl.DataFrame({"text": texts}).select(answer).to_series()


def _per_sample(table: Table, plan: Plan, frame: pl.DataFrame) -> pl.DataFrame:
    """Finish reason of each trace: one value per row, or a list with one per trace."""
    for name in ("finish_reason", "complete"):
        if name not in plan.fields:
            continue
        values = _spread(table.values(plan.fields[name]), frame)
        kind = pl.Boolean if name == "complete" else pl.String
        column = pl.Series(name, values, dtype=kind, strict=False)
        own = [pl.col(name)] if name in frame.columns else []
        frame = frame.with_columns(pl.coalesce(*own, column).alias(name))
    return frame


def _spread(values: Sequence[Any], frame: pl.DataFrame) -> list[Any]:
    """The value of each trace: of its row, or of its place in a list with one value per trace."""
    samples = dict(frame.group_by("row").len().iter_rows())
    spread: list[Any] = []
    for row, sample in frame.select("row", "sample").iter_rows():
        value = values[row]
        if isinstance(value, list):
            value = value[sample] if len(value) == samples[row] else None
        spread.append(value)
    return spread


def _with_labels(table: Table, plan: Plan, frame: pl.DataFrame) -> pl.DataFrame:
    """Labels and scores of others as JSON objects; null for traces without any."""
    columns = {
        name: _spread(_label_values(table, column, frame), frame)
        for name, column in plan.labels.items()
    }
    if plan.layout == "models":
        for name, text in model_columns(table.schema).items():
            for label in _other_fields(table, name, text):
                values = table.values(f"{name}.{label}")
                mine = columns.setdefault(label, [None] * frame.height)
                rows = frame.select("row", "model").iter_rows()
                columns[label] = [
                    values[row] if model == name else old
                    for (row, model), old in zip(rows, mine, strict=True)
                ]
    if frame.get_column("preference").null_count() < frame.height:
        columns["preference"] = frame.get_column("preference").to_list()
    texts = []
    for row in zip(*columns.values(), strict=True) if columns else []:
        labels = {n: v for n, v in zip(columns, row, strict=True) if v is not None}
        texts.append(json.dumps(labels, ensure_ascii=False, default=str) if labels else None)
    frame = frame.drop("preference")
    return frame.with_columns(pl.Series("labels", texts, dtype=pl.String)) if texts else frame


def _label_values(table: Table, column: str, frame: pl.DataFrame) -> list[Any]:
    return table.values(column)


def _other_fields(table: Table, name: str, text: str) -> list[str]:
    kind = table.schema[name]
    assert isinstance(kind, pl.Struct)
    return [f.name for f in kind.fields if f.name != text and not f.dtype.is_nested()]


def _finished(frame: pl.DataFrame, plan: Plan) -> pl.DataFrame:
    """Add our delimiters, the form of the text, and the finish reason."""
    opened = frame.select(ends_in_opener(pl.col("question"), plan.delimiters)).to_series()
    frame = frame.with_columns(
        in_our_delimiters(frame["completion"], opened, plan.delimiters).alias("completion"),
        without_opener(pl.col("question"), plan.delimiters).alias("question"),
    )
    frame = frame.with_columns(
        completion=pl.when(pl.col("completion") != "").then("completion"),
        question=pl.when(pl.col("question").str.strip_chars() != "").then("question"),
    ).with_columns(form=form_of(pl.col("completion")))
    text = pl.col("completion")
    cut = text.str.contains(OPEN, literal=True) & ~text.str.contains(CLOSE, literal=True)
    if "complete" in frame.columns:
        cut |= ~pl.col("complete").fill_null(True)
    given = pl.col("finish_reason")
    reason = (
        pl.when(given.is_in(["stop", "length"]))
        .then(given)
        .when(cut)
        .then(pl.lit("length"))
        .otherwise(pl.lit("stop"))
    )
    return frame.with_columns(finish_reason=reason).drop("complete", "row", "sample", strict=False)
