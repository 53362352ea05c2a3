"""Shapes of foreign rows: their traces, the outcome of each row, and refusals."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from curate.annotate import job as annotate
from curate.config import validate
from curate.errors import UsageError
from curate.filter.export import FORMATS, export_corpus
from curate.filter.job import FilterConfig
from curate.filter.job import run as run_filter
from curate.imports import job as importing
from curate.job import Context, JobResult
from curate.progress import counted


@pytest.fixture
def context(tmp_path: Path) -> Iterator[Context]:
    with Context(tmp_path / "wh") as opened:
        yield opened


def bring(context: Context, path: Path, rows: Any, **options: Any) -> JobResult:
    text = (
        json.dumps(rows) if path.suffix == ".json" else "".join(json.dumps(r) + "\n" for r in rows)
    )
    path.write_text(text)
    config = validate(importing.ImportConfig, {"path": str(path), **options}, "import")
    return importing.run(config, context)


def traces(context: Context, columns: str = "question, completion") -> list[tuple[Any, ...]]:
    query = f"SELECT {columns} FROM annotated ORDER BY question, sample_index, completion"
    return context.warehouse.sql(query).rows()


def user(content: Any) -> dict[str, Any]:
    return {"role": "user", "content": content}


def assistant(content: Any, **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": content, **more}


THOUGHT = "<think>\nR\n</think>\n\nA"
CALL = {"id": "1", "type": "function", "function": {"name": "add", "arguments": "{}"}}


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"prompt": [user("Q")], "completion": [assistant("A")]}, ["A"]),
        ({"messages": [user("Q"), assistant("A", reasoning_content="R")]}, [THOUGHT]),
        ({"messages": [user("Q"), assistant({"answer": "A"})]}, ["A"]),
        ({"messages": [user([{"type": "text", "text": "Q"}]), assistant("A")]}, ["A"]),
        (
            {
                "messages": [
                    user([{"type": "text", "value": "Q"}]),
                    assistant(
                        [{"type": "reasoning", "value": "R"}, {"type": "text", "value": "A"}]
                    ),
                ]
            },
            [THOUGHT],
        ),
        (
            {"conversations": [{"from": "human", "value": "Q"}, {"from": "gpt", "value": "A"}]},
            ["A"],
        ),
        ({"messages": json.dumps([user("Q"), assistant("A")])}, ["A"]),
        ({"question": "Q", "response": ["A", "B", "C"]}, ["A", "B", "C"]),
        ({"problem": "Q", "generations": [{"text": "A", "finish_reason": "stop"}]}, ["A"]),
        ({"question": "Q", "chosen": "A", "rejected": "B"}, ["A", "B"]),
        (
            {"chosen": [user("Q"), assistant("A")], "rejected": [user("Q"), assistant("B")]},
            ["A", "B"],
        ),
        ({"instruction": "Q", "input": "", "output": "A"}, ["A"]),
        (
            {
                "question": "Q",
                "m1": {"solution": "A", "ok": True},
                "m2": {"solution": "B", "ok": False},
            },
            ["A", "B"],
        ),
        ({"question": "Q", "reasoning": "R", "prediction": "A", "answer": "51"}, [THOUGHT]),
        ({"question": "Q", "reasoning": "R", "response": "A"}, [THOUGHT]),
        ({"problem": "Q", "generated_solution": "A", "expected_answer": "51"}, ["A"]),
        ({"doc": {"question": "Q", "answer": "51"}, "resps": [["A"], ["B"]]}, ["A", "B"]),
        ({"prompt": "Q", "response": {"choices": [{"message": assistant("A")}]}}, ["A"]),
        ({"prompt": "Q", "response": {"reasoning": "R", "content": "A"}}, [THOUGHT]),
        ({"messages": [user("Q")], "reasoning": "R", "response": "A"}, [THOUGHT]),
        ({"messages": [user("Q")], "responses": ["A", "B"]}, ["A", "B"]),
        ({"question": "Q", "thinking_trajectories": ["R"], "attempt": "A"}, [THOUGHT]),
        ({"question": "Q", "reasoning_content": "R", "content": "A"}, [THOUGHT]),
        (
            {"question": "Q", "thinking": ["R", "S"], "responses": ["A", "B"]},
            [THOUGHT, THOUGHT.replace("R", "S").replace("A", "B")],
        ),
        ({"user": "Q", "assistant": "A"}, ["A"]),
        ({"prompt": json.dumps([user("Q")]), "completion": "A"}, ["A"]),
        ({"prompt": str([user("Q")]), "completion": "A"}, ["A"]),
        (
            {"chosen": "Human: Q\n\nAssistant: A", "rejected": "Human: Q\n\nAssistant: B"},
            ["A", "B"],
        ),
        ({"prompt": "Q", "completion": "A", "label": True}, ["A"]),
        ({"prompt": [user("Q")], "completion": [assistant("A")], "label": False}, ["A"]),
        (
            {
                "conversations": [{"from": "human", "value": "Q"}],
                "chosen": {"from": "gpt", "value": "A"},
                "rejected": {"from": "gpt", "value": "B"},
            },
            ["A", "B"],
        ),
        (
            {
                "contents": [
                    {"role": "user", "parts": [{"text": "Q"}]},
                    {"role": "model", "parts": [{"text": "A"}]},
                ]
            },
            ["A"],
        ),
        (
            {
                "messages": [
                    user("Q"),
                    assistant(
                        [{"type": "thinking", "thinking": "R"}, {"type": "text", "text": "A"}]
                    ),
                ]
            },
            [THOUGHT],
        ),
    ],
)
def test_every_shape_gives_all_its_traces(
    context: Context, tmp_path: Path, row: dict[str, Any], expected: list[str]
) -> None:
    result = bring(context, tmp_path / "set.jsonl", [row])
    assert traces(context) == [("Q", completion) for completion in expected]
    traces_counted = counted(len(expected), "trace")
    assert result.summary.startswith(f"1 row: {traces_counted} of 1 problem")


def test_conversations_keep_their_turns_and_the_summary_counts_every_row(
    context: Context, tmp_path: Path
) -> None:
    system = {"role": "system", "content": "Be brief."}
    rows = [
        [system, user("Hi"), assistant("Hello!"), user("Q"), assistant("A")],
        [
            user("Add."),
            assistant("", tool_calls=[CALL]),
            {"role": "tool", "content": "4"},
            assistant("4"),
        ],
        [user("Only a question")],
        [user("Q"), assistant("A"), user("Thanks")],
        [assistant("Nobody asked.")],
    ]
    summary = bring(context, tmp_path / "set.jsonl", [{"messages": row} for row in rows]).summary
    for line in (
        "5 rows: 3 traces of 3 problems",
        "1 with tool calls kept as messages",
        "1 of several turns kept as messages",
        "1 with a system message",
        "1 with turns after the last one of the assistant",
        "left out: 1 row without a turn of the assistant",
        "left out: 1 row without a turn of the user",
    ):
        assert line in summary
    kept = {row[1]: row for row in traces(context, "question, completion, messages")}
    assert [m["role"] for m in kept["4"][2]] == ["user", "assistant", "tool", "assistant"]
    assert json.loads(kept["4"][2][1]["tool_calls"]) == [CALL]
    # the same last question after different turns is another problem
    assert [row[0] for row in traces(context)] == ["Add.", "Q", "Q"]


@pytest.mark.parametrize(
    "text",
    [
        "<think>R</think>A",
        "<thinking>R</thinking>A",
        "<reasoning>\nR\n</reasoning>\nA",
        "[THINK]R[/THINK]A",
        "◁think▷R◁/think▷A",
        "<seed:think>R</seed:think>A",
        "<|begin_of_thought|>R<|end_of_thought|><|begin_of_solution|>A<|end_of_solution|>",
        "Thinking...\nR\n...done thinking.\n\nA",
        "Thinking…\nR\n…done thinking.\n\nA",
        "<THINK>R</THINK>A",
        "<Thinking>\nR\n</Thinking>\n\nA",
        "analysisRassistantfinalA",
        "<|channel|>analysis<|message|>R<|channel|>final <|constrain|>json<|message|>A<|end|>",
        "<|channel|>analysis<|message|>R<|end|><|start|>assistant<|channel|>final<|message|>A<|return|>",
        "R</think>A",
        "R</thinking>A",
        "<<R>>A",
    ],
)
def test_reasoning_is_separated_from_the_answer_for_all_delimiters(
    context: Context, tmp_path: Path, text: str
) -> None:
    row = {"question": "Q", "completion": text}
    bring(context, tmp_path / "set.jsonl", [row], delimiters=["<<", ">>"])
    assert traces(context, "form, reasoning, answer") == [("r1", "R", "A")]


def test_delimiters_inside_a_text_are_part_of_it(context: Context, tmp_path: Path) -> None:
    text = "Write `<reasoning>` before and `</reasoning>` after it."
    bring(context, tmp_path / "set.jsonl", [{"question": "Q", "completion": text}])
    assert traces(context, "form, completion") == [("plain", text)]


@pytest.mark.parametrize(
    "prompt",
    ["Q\n<think>\n", "<|im_start|>user\nQ<|im_end|>\n<|im_start|>assistant\n<think>\n"],
)
def test_the_prompt_may_have_opened_the_reasoning(
    context: Context, tmp_path: Path, prompt: str
) -> None:
    rows = [{"prompt": prompt, "completion": text} for text in ("R</think>A", "cut off")]
    bring(context, tmp_path / "set.jsonl", rows)
    assert traces(context, "question, reasoning, answer, finish_reason") == [
        ("Q", "R", "A", "stop"),
        ("Q", "cut off", None, "length"),
    ]


def test_a_reference_is_never_taken_for_the_summary(context: Context, tmp_path: Path) -> None:
    row = {"question": "What is 17*3?", "reasoning": "so 41.", "answer": "51"}
    with pytest.raises(UsageError, match=r"columns\.reference=answer or columns\.summary=answer"):
        bring(context, tmp_path / "a.jsonl", [row])
    bring(context, tmp_path / "b.jsonl", [row], columns={"reference": "answer"}, verifier="math")
    annotate.run(annotate.AnnotateConfig(signals=[]), context)
    assert traces(context, "completion, reference, verdict") == [
        ("<think>\nso 41.\n</think>", "51", "wrong")
    ]


@pytest.mark.parametrize(
    ("answer", "pattern", "reference"),
    [
        ("Six.\n#### 6", None, "6"),
        ("6 * 1 = 6\nA: 6", None, "6"),
        ("So it\nis \\boxed{\\frac{12}{2}}.", None, "\\frac{12}{2}"),
        ("the result => 6", r"=> (\d+)", "6"),
        (["6"], None, "6"),
        (["A", "C"], None, "A, C"),
        (6.0, None, "6"),
    ],
)
def test_references_are_read_from_worked_solutions_and_lists(
    context: Context, tmp_path: Path, answer: Any, pattern: str | None, reference: str
) -> None:
    row = {"question": "Q", "completion": "6", "answer": answer}
    bring(context, tmp_path / "set.jsonl", [row], reference_pattern=pattern)
    assert traces(context, "reference") == [(reference,)]


def test_nested_references_are_addressed_or_refused_with_the_option(
    context: Context, tmp_path: Path
) -> None:
    row = {
        "prompt": [user("Q")],
        "response": "A",
        "reward_model": {"ground_truth": {"text": "51", "code": "x"}, "style": "rule"},
    }
    message = r"columns\.reference=reward_model\.ground_truth\.text"
    with pytest.raises(UsageError, match=message):
        bring(context, tmp_path / "a.jsonl", [row])
    columns = {"reference": "reward_model.ground_truth.text"}
    bring(context, tmp_path / "b.jsonl", [row], columns=columns)
    assert traces(context, "question, completion, reference") == [("Q", "A", "51")]


def test_labels_are_kept_and_rules_read_them(context: Context, tmp_path: Path) -> None:
    rows = [
        {"question": "Q", "response": ["A", "B"], "score": [0.2, 0.9], "judge": {"by": "x"}},
        {"question": "P", "response": ["C"], "score": [0.7], "judge": {"by": "y"}},
    ]
    bring(context, tmp_path / "set.jsonl", rows, labels={"by": "judge.by"})
    rules = tmp_path / "rules.yaml"
    rules.write_text(
        "rules: [{name: good, keep: labels.score > 0.5 AND labels->>'by' = 'x', reason: r}]"
    )
    run_filter(FilterConfig(rules=str(rules), corpus="good"), context)
    assert context.warehouse.sql("SELECT trim(completion) FROM corpora").rows() == [("B",)]


def test_a_text_in_two_data_sets_is_two_traces_and_multiplies_nothing(
    context: Context, tmp_path: Path
) -> None:
    row = {"question": "What is 2+2?", "completion": "The answer is \\boxed{4}.", "answer": "4"}
    for name in ("a", "b", "c"):
        bring(context, tmp_path / f"{name}.jsonl", [row, row], verifier="math")
    annotate.run(annotate.AnnotateConfig(), context)
    counts = "count(*), count(DISTINCT trace_id), count(DISTINCT dataset)"
    assert traces_count(context, counts) == (3, 3, 3)
    assert run_filter(FilterConfig(rules="unfiltered"), context).rows == 3


def traces_count(context: Context, columns: str) -> tuple[Any, ...]:
    return context.warehouse.sql(f"SELECT {columns} FROM annotated").row(0)


def test_an_export_in_every_format_comes_back_with_the_same_rows(
    context: Context, tmp_path: Path
) -> None:
    rows = [
        {
            "question": f"What is {i} + 1?",
            "completion": f"<think>x</think> \\boxed{{{i + 1}}}",
            "answer": i + 1,
        }
        for i in range(5)
    ]
    talk = [user("Hi"), assistant("Hello"), user("What is 9 + 1?"), assistant("10")]
    bring(context, tmp_path / "set.jsonl", rows, verifier="math")
    bring(context, tmp_path / "talk.jsonl", [{"messages": talk}])
    run_filter(FilterConfig(rules="unfiltered", corpus="all"), context)
    before = context.warehouse.sql("SELECT question, trim(completion) FROM annotated").rows()
    for format, suffix in product(FORMATS, (".parquet", ".jsonl", "")):
        kind = FORMATS[format]
        if kind.paired:  # no wrong trace exists
            continue
        path = tmp_path / f"{format}{suffix}"  # without an ending: a directory with its card
        export_corpus(context.warehouse, "all", path, format)
        with Context(tmp_path / f"wh-{format}{suffix}") as other:
            config = validate(importing.ImportConfig, {"path": str(path)}, "import")
            importing.run(config, other)
            questions = sorted(question for question, _ in before)
            if kind.by_problem:  # prompts for RL, without completions
                problems = other.warehouse.sql("SELECT question, reference FROM problems").sort(
                    "question"
                )
                assert problems["question"].to_list() == questions
                continue
            after = other.warehouse.sql("SELECT question, trim(completion) FROM annotated").rows()
            assert sorted(text for _, text in after) == sorted(text for _, text in before)
            if format != "prompt-completion":  # whose prompts are rendered
                assert sorted(after) == sorted(before)


def test_a_corpus_holds_all_turns_of_a_conversation(context: Context, tmp_path: Path) -> None:
    talk = [
        {"role": "system", "content": "Be brief."},
        user("Hi"),
        assistant("", tool_calls=[CALL]),
        {"role": "tool", "content": "tool says 4"},
        assistant("Hello!"),
        user("What is 9 + 1?"),
        assistant("10"),
    ]
    bring(context, tmp_path / "talk.jsonl", [{"messages": talk}])
    run_filter(FilterConfig(rules="unfiltered"), context)
    prompt, completion, messages = context.warehouse.sql(
        "SELECT prompt, completion, messages FROM corpora"
    ).row(0)
    places = [
        prompt.index(text) for text in ("Be brief.", "Hi", "add", "tool says 4", "Hello!", "9 + 1")
    ]
    assert places == sorted(places)
    assert completion.strip() == "10"
    roles = ["system", "user", "assistant", "tool", "assistant", "user", "assistant"]
    assert [message["role"] for message in messages] == roles
    bring(context, tmp_path / "again.jsonl", [{"messages": messages}])
    assert len(set(traces(context, "completion, len(messages)"))) == 1


def test_problems_without_traces_are_imported_as_such(context: Context, tmp_path: Path) -> None:
    (tmp_path / "set.tsv").write_text("What is 2 + 3?\t5\nWhat is 2 + 4?\t6\n")
    config = validate(
        importing.ImportConfig, {"path": str(tmp_path / "set.tsv"), "verifier": "math"}, "import"
    )
    assert "2 problems, no traces" in importing.run(config, context).summary
    problems = context.warehouse.sql("SELECT question, reference, verifier FROM problems")
    assert sorted(problems.rows())[0] == ("What is 2 + 3?", "5", "math")
    long = {"question": "Q", "essay": "word " * 100}
    with pytest.raises(UsageError, match=r"columns\.completion=essay, or layout=problems"):
        bring(context, tmp_path / "long.jsonl", [long])


def test_the_turns_before_an_instruction_are_kept(context: Context, tmp_path: Path) -> None:
    row = {"instruction": "Q", "input": "", "output": "A", "history": [["Hi", "Hello"]]}
    result = bring(context, tmp_path / "set.json", [row])
    ((messages,),) = traces(context, "messages")
    assert [turn["content"] for turn in messages] == ["Hi", "Hello", "Q", "A"]
    assert "1 of several turns kept as messages" in result.summary


def test_a_conversation_in_a_csv_file_is_read_from_its_text(
    context: Context, tmp_path: Path
) -> None:
    talk = [user("Q"), assistant("It's\nA")]
    for name, text in (("json", json.dumps(talk)), ("python", str(talk))):
        path = tmp_path / f"{name}.csv"
        pl.DataFrame({"messages": [text]}).write_csv(path)
        importing.run(importing.ImportConfig(path=str(path)), context)
    assert traces(context) == [("Q", "It's\nA")] * 2


def test_rows_without_text_are_refused_or_left_out_and_counted(
    context: Context, tmp_path: Path
) -> None:
    image = user([{"type": "image_url", "image_url": {"url": "x"}}, {"type": "text", "text": "Q"}])
    rows = [{"messages": [user("Q"), assistant("A")]}, {"messages": [image, assistant("B")]}]
    path = tmp_path / "set.jsonl"
    with pytest.raises(UsageError, match=r"row 2: a part of type 'image_url' .* skip_invalid=true"):
        bring(context, path, rows)
    summary = bring(context, path, rows, skip_invalid=True).summary
    assert "left out: 1 row that cannot be read as text (skip_invalid)" in summary
    assert traces(context) == [("Q", "A")]


def test_a_file_imported_again_with_other_options_is_refused(
    context: Context, tmp_path: Path
) -> None:
    rows = [{"question": "Q", "completion": "A", "gold": "4"}]
    path = tmp_path / "set.jsonl"
    bring(context, path, rows)
    with pytest.raises(UsageError, match=r"verifier: none, now math.*name=set-2"):
        bring(context, path, rows, verifier="math", columns={"reference": "gold"})
    (tmp_path / "copy.jsonl").write_bytes(path.read_bytes())
    with pytest.raises(UsageError, match="imported with other options"):
        bring(context, tmp_path / "copy.jsonl", rows, name="set", verifier="math")
    assert traces_count(context, "count(*)") == (1,)
    bring(context, path, [*rows, {"question": "P", "completion": "B", "gold": "5"}])  # grown
    bring(context, path, rows, verifier="math", columns={"reference": "gold"}, name="set-2")
    assert traces_count(context, "count(*)") == (3,)


def test_an_id_that_older_versions_stored_under_two_names_is_one_trace(
    context: Context, tmp_path: Path
) -> None:
    row = {"question": "What is 2+2?", "completion": "The answer is \\boxed{4}.", "answer": "4"}
    bring(context, tmp_path / "a.jsonl", [row], verifier="math")
    (first,) = context.warehouse.versions("traces", "a")
    stored = pl.read_parquet(first.parts())
    for name in ("b", "c"):  # as they were written before ids depended on the name
        context.warehouse.write("traces", name, stored, key=name)
    annotate.run(annotate.AnnotateConfig(), context)
    assert traces_count(context, "count(*), count(readable), any_value(verdict)") == (
        1,
        1,
        "correct",
    )
    assert run_filter(FilterConfig(rules="unfiltered"), context).rows == 1


def test_a_lone_surrogate_becomes_a_replacement_character(context: Context, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"question": "Q", "completion": "half \\ud83d"}\n')
    importing.run(importing.ImportConfig(path=str(tmp_path / "a.jsonl")), context)
    assert traces(context) == [("Q", "half \ufffd")]


def test_broken_lines_are_skipped_on_demand_and_counted(context: Context, tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"question": "Q", "completion": "A"}\nbroken\n')
    with pytest.raises(UsageError, match="line 2: not valid JSON"):
        importing.run(importing.ImportConfig(path=str(path)), context)
    result = importing.run(importing.ImportConfig(path=str(path), skip_invalid=True), context)
    assert "2 rows: 1 trace" in result.summary
    assert "left out: 1 line without a JSON object" in result.summary


def test_mixed_shapes_in_one_column_keep_their_meaning(context: Context, tmp_path: Path) -> None:
    rows = [
        {"messages": [user("P"), assistant('{"answer": "kept as it is"}')]},
        {"messages": [user([{"type": "text", "text": "Q"}]), assistant("A")]},
    ]
    bring(context, tmp_path / "set.jsonl", rows)
    assert traces(context) == [("P", '{"answer": "kept as it is"}'), ("Q", "A")]


def test_a_list_of_texts_in_parquet_gives_all_of_them(context: Context, tmp_path: Path) -> None:
    pl.DataFrame({"question": ["Q"], "responses": [["A", "B"]]}).write_parquet(
        tmp_path / "a.parquet"
    )
    importing.run(importing.ImportConfig(path=str(tmp_path / "a.parquet")), context)
    assert traces(context) == [("Q", "A"), ("Q", "B")]
