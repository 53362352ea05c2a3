"""The report's template to the letter, worked examples as earlier turns, and the same for chat
models.
"""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from curate.errors import UsageError
from curate.prompts.forms import parse
from curate.prompts.render import (
    Example,
    join,
    load_template,
    messages,
    render,
    shipped,
    worked_completion,
)
from curate.records import Problem

# Table 1 of the DeepSeek-R1 report.
REPORT = (
    "A conversation between User and Assistant. The user asks a question, and the "
    "Assistant solves it. "
    "The assistant first thinks about the reasoning process in the mind and then provides "
    "the user with the answer. "
    "The reasoning process and answer are enclosed within <think> </think> and <answer> "
    "</answer> tags, respectively, "
    "i.e., <think> reasoning process here </think> <answer> answer here </answer>. User: "
    "prompt. Assistant:"
)
SUM = Problem("What is 1 + 2?", reference="3", solution="1 + 2 = 3.", problem_id="p")


def test_the_reports_template_is_rendered_to_the_letter():
    assert render(load_template("r1-zero"), "prompt") == REPORT
    assert load_template("r1-zero").form.name == "r1-zero"


@pytest.mark.parametrize(
    ("question", "turn"),
    [
        ("Add 1 and 2", "User: Add 1 and 2. Assistant:"),
        ("Add 1 and 2.", "User: Add 1 and 2. Assistant:"),
        ("What is 1 + 2?", "User: What is 1 + 2? Assistant:"),
        (" What is 1 + 2?\n", "User: What is 1 + 2? Assistant:"),
        ("1 + 2 =", "User: 1 + 2 = Assistant:"),
        ("一加二等于几？", "User: 一加二等于几？ Assistant:"),
        ("求一加二。", "User: 求一加二。 Assistant:"),
        ("求一加二", "User: 求一加二. Assistant:"),
        ("Add them!", "User: Add them! Assistant:"),
        ("Find $f(2)$", "User: Find $f(2)$. Assistant:"),
        ("Find f(2)", "User: Find f(2). Assistant:"),
        ("Answer (it is short.)", "User: Answer (it is short.) Assistant:"),
        ('He asks "why?"', 'User: He asks "why?" Assistant:'),
        ("Fill {question} and {open}", "User: Fill {question} and {open}. Assistant:"),
    ],
)
def test_one_full_stop_after_the_question(question, turn):
    prompt = render(load_template("r1-zero"), question)
    assert prompt == REPORT.replace("User: prompt. Assistant:", turn)


def test_worked_examples_are_earlier_turns():
    examples = [
        Example("What is 1 + 1?", "<think> 2 </think> <answer> 2 </answer>"),
        Example("Add 2 and 2", " four"),
    ]
    head = REPORT.removesuffix("User: prompt. Assistant:")
    assert render(load_template("r1-zero"), "Add 3 and 3.", examples) == (
        f"{head}User: What is 1 + 1? Assistant: <think> 2 </think> <answer> 2 </answer>\n"
        "User: Add 2 and 2. Assistant: four\n"
        "User: Add 3 and 3. Assistant:"
    )


def test_a_template_without_a_user_turn_is_repeated_whole(tmp_path):
    path = tmp_path / "mine.txt"
    path.write_text("Q: {question}\nA:")
    assert render(load_template(path), "b", [Example("a", "x")]) == "Q: a\nA: x\nQ: b\nA:"


def test_chat_gets_the_instructions_once_and_no_marks_of_turns():
    template = load_template("r1-zero")
    talk = messages(template, "Add 3 and 3", [Example("What is 1 + 1?", "two")])
    assert [m["role"] for m in talk] == ["user", "assistant", "user"]
    assert talk[0]["content"].startswith("A conversation between")
    assert talk[0]["content"].endswith("answer here </answer>.\n\nWhat is 1 + 1?")
    assert talk[1]["content"] == "two"
    assert talk[2]["content"] == "Add 3 and 3"
    assert (
        render(template, "Add 3 and 3", chat=lambda m: f"{len(m)}|{m[-1]['content'][-11:]}")
        == "1|Add 3 and 3"
    )
    assert messages(load_template("plain"), " hello ") == [{"role": "user", "content": "hello"}]


@pytest.mark.parametrize("name", ["r1", "r1-zh"])
def test_reasoning_templates_name_the_delimiters_of_their_form(name):
    assert name in shipped()
    default, own = load_template(name), load_template(name, form="r1[<|a|>|<|b|>]")
    assert "<think>" in default.text
    assert "</think>" in default.text
    assert "<|a|>" in own.text
    assert "<|b|>" in own.text
    assert "<think>" not in own.text
    assert own.hash != default.hash
    assert "{open}" not in own.text + default.text


def test_a_language_selects_its_variant_if_one_exists():
    assert load_template("r1", language="zh").name == "r1-zh"
    assert load_template("r1", language="en").name == "r1"
    assert load_template("r1-zero", language="zh").text == load_template("r1-zero").text


def test_every_shipped_template_renders_and_is_one_line():
    for name in shipped():
        prompt = render(load_template(name), "What is 1 + 2?")
        assert prompt.count("What is 1 + 2?") == 1
        assert "\n" not in prompt
        assert "  " not in prompt


@pytest.mark.parametrize("text", ["no place", "{question} and {question}", ""])
def test_a_template_must_have_one_place_for_the_question(tmp_path, text):
    path = tmp_path / "bad.txt"
    path.write_text(text)
    with pytest.raises(UsageError, match="exactly once"):
        load_template(path)


def test_an_unknown_template_is_named_with_the_existing_ones(tmp_path):
    with pytest.raises(UsageError, match=r"'nope'.*r1-zero"):
        load_template("nope")
    (tmp_path / "latin.txt").write_bytes(b"{question} \xff")
    with pytest.raises(UsageError, match="UTF-8"):
        load_template(tmp_path / "latin.txt")


def test_the_label_names_template_and_examples():
    template, one, two = load_template("r1-zero"), Example("a", "b"), Example("ab", "")
    labels = {
        template.label(),
        template.label([one]),
        template.label([two]),
        template.label([one, two]),
    }
    assert len(labels) == 4
    assert template.label() == f"r1-zero@{template.hash}"
    assert template.label([one]).startswith(template.label() + "+1@")


@pytest.mark.parametrize("form", ["r1-zero", "r1", "r1[<|a|>|<|b|>]", "plain"])
def test_a_worked_completion_keeps_its_form(form):
    parsed = parse(worked_completion(SUM, form), form)
    assert parsed.well_formed
    assert "3" in parsed.answer
    assert parsed.reasoning == (None if form == "plain" else "1 + 2 = 3.")


def test_worked_completions_to_the_letter():
    assert worked_completion(SUM, "r1-zero") == "<think> 1 + 2 = 3. </think> <answer> 3 </answer>"
    assert (
        worked_completion(SUM, "r1") == "<think>\n1 + 2 = 3.\n</think>\n\nThe answer is \\boxed{3}."
    )
    chinese = Problem("一加二？", reference="3", solution="一加二得三。", target_language="zh")
    assert worked_completion(chinese, "r1").endswith("</think>\n\n答案是 \\boxed{3}。")


def test_a_problem_without_a_solution_is_not_a_worked_example():
    with pytest.raises(UsageError, match="worked solution"):
        worked_completion(Problem("?", reference="1"), "r1-zero")


@settings(deadline=None, max_examples=50)
@given(st.text(max_size=20), st.text(max_size=20))
def test_joined_text_is_separated_by_white_space_and_complete(prompt, completion):
    text = join(prompt, completion)
    assert text in (prompt + completion, f"{prompt} {completion}")
    if prompt and completion:
        assert text[len(prompt)].isspace() or prompt[-1].isspace()
