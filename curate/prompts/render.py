"""Render questions as prompts: templates are text files, worked examples are earlier turns.

A template contains `{question}` once, and `{open}` and `{close}` for the delimiters of the
reasoning. The report's own template is kept as printed, with the word `prompt` in place of the
question (`User: prompt. Assistant:`). The text before the user's turn occurs once; each worked
example is a whole turn before the last one.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator

from curate.errors import UsageError, did_you_mean
from curate.prompts.forms import ANSWER_OPEN, CLOSE, OPEN, Form
from curate.records import Problem

Chat = Callable[[list[dict[str, str]]], str]

_QUESTION = "{question}"
_REPORT_TURN = "User: prompt."  # the place of the question in the report's template
_TURN = re.compile(r"(?:User|用户)\s*[:：]\s*\Z")
_STOPS = ".。．"
# An arithmetic question often ends in "=": a full stop after it would read as a part of it.
_ENDS = ".?!…。？！．:：;；="
_CLOSERS = "\"'”’)]}»」』）】*$ "


@dataclass(frozen=True, slots=True)
class Template:
    """A prompt template: its name, text, hash of the text, and the form that its completions
    should have.
    """

    name: str
    text: str
    hash: str
    form: Form

    def label(self, examples: Sequence[Example] = ()) -> str:
        """The value of the column `traces.template`: name and hash, then number and hash of worked
        examples.
        """
        own = f"{self.name}@{self.hash}"
        if not examples:
            return own
        texts = [text for e in examples for text in (e.question, e.completion)]
        return f"{own}+{len(examples)}@{_hash(*texts)}"


@dataclass(frozen=True, slots=True)
class Example:
    """A worked example: a question, and the whole completion that it should get, with tags."""

    question: str
    completion: str


def load_template(
    name: str | Path, form: str | Form | None = None, language: str | None = None
) -> Template:
    """Load a shipped template by name (r1-zero, r1, plain), or a text file by path.

    `language` prefers a variant in that language if one is shipped (`r1` in `zh`). Without `form`,
    the text decides: answer tags mean `r1-zero`, delimiters of reasoning mean `r1`, else it is
    `plain`. UsageError for an unknown template, or one without a place for the question.
    """
    variant, text = _read(str(name), language)
    if _QUESTION not in text and _REPORT_TURN in text:
        text = f"User: {_QUESTION}.".join(text.rsplit(_REPORT_TURN, 1))
    if text.count(_QUESTION) != 1:
        raise UsageError(
            f"template '{name}' must contain {_QUESTION} exactly once; it has it "
            f"{text.count(_QUESTION)} times"
        )
    own = Form.of(form if form is not None else _form_of(text))
    text = text.replace("{open}", own.open or OPEN).replace("{close}", own.close or CLOSE)
    return Template(variant, text, _hash(text), own)


def _existing_template(name: str) -> str:
    try:
        load_template(name)
    except UsageError as error:
        raise ValueError(str(error)) from error
    return name


TemplateName = Annotated[str, AfterValidator(_existing_template)]
"""A field of a config that names a template, or gives the path of one."""


def render(
    template: Template, question: str, examples: Sequence[Example] = (), chat: Chat | None = None
) -> str:
    """The prompt for one question, with worked examples as earlier turns.

    With `chat`, an engine's `render_chat`, the model's own chat template does it: the text before
    the user's turn goes to the beginning of the first user message, and the marks of the turns are
    left out.
    """
    if chat is not None:
        return chat(messages(template, question, examples))
    preamble, turn = _split(template.text)
    turns = [join(_ask(turn, e.question), e.completion.strip()) + "\n" for e in examples]
    return preamble + "".join(turns) + _ask(turn, question)


def messages(
    template: Template, question: str, examples: Sequence[Example] = ()
) -> list[dict[str, str]]:
    """The prompt as chat messages, `[{"role": "user", "content": ...}, ...]`; the last one is the
    user's.
    """
    preamble, _ = _split(template.text)
    talk: list[dict[str, str]] = []
    for example in examples:
        talk += [_message("user", example.question), _message("assistant", example.completion)]
    talk.append(_message("user", question))
    if preamble.strip():
        talk[0]["content"] = f"{preamble.strip()}\n\n{talk[0]['content']}"
    return talk


def join(prompt: str, completion: str) -> str:
    """Prompt and completion as one text, separated by a space unless there is white space.

    Sampled completions of `... Assistant:` begin with a space; written ones should look the same.
    """
    glued = not prompt or not completion or prompt[-1].isspace() or completion[0].isspace()
    return prompt + completion if glued else f"{prompt} {completion}"


def worked_completion(problem: Problem, form: str | Form = "r1-zero") -> str:
    """A problem's worked solution as a completion in a form. UsageError without a solution or
    reference.
    """
    if not (problem.solution and problem.solution.strip() and problem.reference):
        raise UsageError(
            f"problem '{problem.problem_id or problem.question[:60]}' has no worked solution: "
            "take worked examples from a source that has them (a `solution` column, or a "
            "procedural generator with one)"
        )
    form, solution, reference = Form.of(form), problem.solution.strip(), problem.reference.strip()
    if form.name == "r1-zero":
        return form.compose(solution, reference)
    chinese = problem.target_language == "zh"
    summary = (
        f"答案是 \\boxed{{{reference}}}。" if chinese else f"The answer is \\boxed{{{reference}}}."
    )
    return form.compose(solution, summary)


def shipped() -> list[str]:
    """Names of the templates that come with the package."""
    return sorted(
        f.name.removesuffix(".txt")
        for f in (files("curate.prompts") / "templates").iterdir()
        if f.name.endswith(".txt")
    )


@cache
def _read(name: str, language: str | None) -> tuple[str, str]:
    """The name of the template, or of its variant in the language, and its text."""
    names = shipped()
    if name in names:
        variant = f"{name}-{language}" if f"{name}-{language}" in names else name
        return variant, (files("curate.prompts") / "templates" / f"{variant}.txt").read_text(
            "utf-8"
        ).rstrip("\n")
    path = Path(name)
    try:
        return path.stem, path.read_text("utf-8").rstrip("\n")
    except UnicodeDecodeError as error:
        raise UsageError(f"template '{name}' is not text in UTF-8") from error
    except OSError as error:
        hint = did_you_mean(name, names)
        raise UsageError(
            f"no template '{name}': choose one of {', '.join(names)}, or give the path of a "
            f"text file{hint}"
        ) from error


def _form_of(text: str) -> str:
    if ANSWER_OPEN in text:
        return "r1-zero"
    return "r1" if "{open}" in text or OPEN in text else "plain"


def _split(text: str) -> tuple[str, str]:
    """The text that occurs once, and the turn that each question repeats: the whole template if it
    marks no user.
    """
    head, _, _ = text.partition(_QUESTION)
    if mark := _TURN.search(head):
        return text[: mark.start()], text[mark.start() :]
    return "", text


def _ask(turn: str, question: str) -> str:
    """The turn with the question in it, without a second full stop after a question that ends by
    itself.
    """
    before, _, after = turn.partition(_QUESTION)
    question = question.strip()
    if after[:1] in _STOPS and question.rstrip(_CLOSERS)[-1:] in _ENDS:
        after = after[1:]
    return before + question + after


def _message(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content.strip()}


def _hash(*texts: str) -> str:
    return hashlib.blake2b("\x1f".join(texts).encode(), digest_size=6).hexdigest()
