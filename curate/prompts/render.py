"""From a question to the prompt an engine completes: templates are text files, worked examples are earlier turns.

A template holds `{question}` once, and `{open}` and `{close}` where the delimiters of the reasoning go. The report's
own template has the word `prompt` in the place of the question (`User: prompt. Assistant:`), and is kept as printed.
What stands before the user's turn is said once; each worked example is a whole turn before the one that is asked.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path

from curate.errors import UsageError
from curate.prompts.forms import ANSWER_OPEN, CLOSE, OPEN, Form
from curate.records import Problem

Chat = Callable[[list[dict[str, str]]], str]

_QUESTION = "{question}"
_REPORT_TURN = "User: prompt."  # how the report prints the place of the question
_TURN = re.compile(r"(?:User|用户)\s*[:：]\s*\Z")
_STOPS = ".。．"
_ENDS = ".?!…。？！．:：;；="  # an arithmetic question often ends in "=": a full stop after it reads as a part of it
_CLOSERS = "\"'”’)]}»」』）】*$ "


@dataclass(frozen=True, slots=True)
class Template:
    """A prompt template: `name`, its `text`, a `hash` of the text, and the `form` that its completions should have."""

    name: str
    text: str
    hash: str
    form: Form

    def label(self, examples: Sequence[Example] = ()) -> str:
        """What the column `traces.template` holds: name and hash, and the number and hash of worked examples."""
        own = f"{self.name}@{self.hash}"
        return own + (
            f"+{len(examples)}@{_hash(*(t for e in examples for t in (e.question, e.completion)))}"
            * bool(examples)
        )


@dataclass(frozen=True, slots=True)
class Example:
    """A worked example: a question and the whole completion it should get, tags included."""

    question: str
    completion: str


def load_template(
    name: str | Path, form: str | Form | None = None, language: str | None = None
) -> Template:
    """A shipped template by name (r1-zero, r1, plain), or a text file by path.

    `language` prefers a variant for it where one is shipped (`r1` in `zh`). Without `form` it is read off the text:
    answer tags mean `r1-zero`, delimiters of reasoning mean `r1`, else `plain`. Raises `UsageError` where there is no
    such template, or where it has no place for the question.
    """
    found, text = _read(str(name), language)
    if _QUESTION not in text and _REPORT_TURN in text:
        text = f"User: {_QUESTION}.".join(text.rsplit(_REPORT_TURN, 1))
    if text.count(_QUESTION) != 1:
        raise UsageError(
            f"template '{name}' must hold {_QUESTION} exactly once; it does {text.count(_QUESTION)} times"
        )
    own = Form.of(form if form is not None else _form_of(text))
    text = text.replace("{open}", own.open or OPEN).replace("{close}", own.close or CLOSE)
    return Template(found, text, _hash(text), own)


def render(
    template: Template, question: str, examples: Sequence[Example] = (), chat: Chat | None = None
) -> str:
    """The prompt for one question, with worked examples as earlier turns.

    With `chat` (an engine's `render_chat`) the same is given to the model's own chat template: what the template says
    before the user's turn opens the first user message, and the marks of the turns are left out.
    """
    if chat is not None:
        return chat(messages(template, question, examples))
    preamble, turn = _split(template.text)
    asked = [_ask(turn, example.question) for example in examples]
    shown = "".join(
        join(prompt, e.completion.strip()) + "\n" for prompt, e in zip(asked, examples, strict=True)
    )
    return preamble + shown + _ask(turn, question)


def messages(
    template: Template, question: str, examples: Sequence[Example] = ()
) -> list[dict[str, str]]:
    """The prompt as chat messages, `[{"role": "user", "content": ...}, ...]`; the last one is the user's."""
    preamble, _ = _split(template.text)
    talk: list[dict[str, str]] = []
    for example in examples:
        talk += [_message("user", example.question), _message("assistant", example.completion)]
    talk.append(_message("user", question))
    if preamble.strip():
        talk[0]["content"] = f"{preamble.strip()}\n\n{talk[0]['content']}"
    return talk


def join(prompt: str, completion: str) -> str:
    """Prompt and completion as one text, with one space between where neither has white space there.

    Sampled completions of `... Assistant:` begin with a space; those that are written should look the same.
    """
    glued = not prompt or not completion or prompt[-1].isspace() or completion[0].isspace()
    return prompt + completion if glued else f"{prompt} {completion}"


def worked_completion(problem: Problem, form: str | Form = "r1-zero") -> str:
    """The completion that a problem's worked solution makes in a form; `UsageError` without a solution or reference."""
    if not (problem.solution and problem.solution.strip() and problem.reference):
        raise UsageError(
            f"problem '{problem.problem_id or problem.question[:60]}' has no worked solution: "
            "take worked examples from a source that has them (a `solution` column, or a procedural generator with one)"
        )
    form, solution, reference = Form.of(form), problem.solution.strip(), problem.reference.strip()
    if form.name == "r1-zero":
        return f"<think> {solution} </think> <answer> {reference} </answer>"
    chinese = problem.target_language == "zh"
    summary = (
        f"答案是 \\boxed{{{reference}}}。" if chinese else f"The answer is \\boxed{{{reference}}}."
    )
    if form.name == "plain":
        return f"{solution}\n\n{summary}"
    return f"{form.open}\n{solution}\n{form.close}\n\n{summary}"


def worked_examples(problems: Iterable[Problem], form: str | Form, count: int) -> list[Example]:
    """The first `count` problems that have a worked solution, as examples in a form.

    Give it training problems that are not asked themselves. Raises `UsageError` where fewer have a solution.
    """
    found: list[Example] = []
    for problem in problems:
        if len(found) == count:
            break
        if problem.solution and problem.reference:
            found.append(Example(problem.question, worked_completion(problem, form)))
    if len(found) < count:
        raise UsageError(
            f"{count} worked examples were asked for, but only {len(found)} problems have a worked solution"
        )
    return found


def shipped() -> list[str]:
    """Names of the templates that come with the package."""
    return sorted(
        f.name.removesuffix(".txt")
        for f in (files("curate.prompts") / "templates").iterdir()
        if f.name.endswith(".txt")
    )


@cache
def _read(name: str, language: str | None) -> tuple[str, str]:
    known = shipped()
    if name in known:
        found = f"{name}-{language}" if f"{name}-{language}" in known else name
        return found, (files("curate.prompts") / "templates" / f"{found}.txt").read_text(
            "utf-8"
        ).rstrip("\n")
    path = Path(name)
    try:
        return path.stem, path.read_text("utf-8").rstrip("\n")
    except (OSError, UnicodeDecodeError) as error:
        reason = (
            "is no text file in UTF-8"
            if isinstance(error, UnicodeDecodeError)
            else "could not be read"
        )
        raise UsageError(
            f"template '{name}' {reason}: choose one of {', '.join(known)}, or give a path"
        ) from error


def _form_of(text: str) -> str:
    if ANSWER_OPEN in text:
        return "r1-zero"
    return "r1" if "{open}" in text or OPEN in text else "plain"


def _split(text: str) -> tuple[str, str]:
    """What is said once, and the turn that every question repeats (the whole template, where it marks no user)."""
    head, _, _ = text.partition(_QUESTION)
    if mark := _TURN.search(head):
        return text[: mark.start()], text[mark.start() :]
    return "", text


def _ask(turn: str, question: str) -> str:
    """The turn with the question in its place, and no second full stop after a question that has its own end."""
    before, _, after = turn.partition(_QUESTION)
    question = question.strip()
    if after[:1] in _STOPS and question.rstrip(_CLOSERS)[-1:] in _ENDS:
        after = after[1:]
    return before + question + after


def _message(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content.strip()}


def _hash(*texts: str) -> str:
    return hashlib.blake2b("\x1f".join(texts).encode(), digest_size=6).hexdigest()
