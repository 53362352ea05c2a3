"""Bring the conversations of data sets into one shape: a list of messages with role and text.

    messages_of([{"from": "human", "value": "2 + 3?"}, {"from": "gpt", "value": "5"}])

It reads OpenAI messages (text parts, reasoning, tool calls), ShareGPT turns, and prompts that a
chat template rendered (ChatML, Llama 3, DeepSeek). No turn is dropped: content that cannot be kept
as text raises `ValueError`.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

ROLES = {
    **dict.fromkeys(("user", "human", "prompter", "question"), "user"),
    **dict.fromkeys(
        ("assistant", "gpt", "model", "bot", "chatgpt", "ai", "function_call", "tool_call"),
        "assistant",
    ),
    **dict.fromkeys(("system", "developer"), "system"),
    **dict.fromkeys(
        ("tool", "function", "observation", "function_response", "ipython", "tool_response"), "tool"
    ),
}
_CALLS = ("function_call", "tool_call")
# Keys of the text in a turn, in a part of its content, or in an object in its place.
_TEXTS = ("content", "value", "text", "parts", "answer", "response", "output")
_REASONINGS = ("reasoning_content", "reasoning", "thinking", "thought")
_RENDERED = re.compile(
    r"<\|im_start\|>\s*(?P<chatml>\w+)\n|<\|start_header_id\|>(?P<llama>\w+)<\|end_header_id\|>\s*"
    r"|<｜(?P<deepseek>User|Assistant)｜>"
)
_OPENER = re.compile(r"[<\[◁][^<>\[\]]{1,30}[>\]▷]\Z")
_SPOKEN = re.compile(r"(?:\A\s*|\n\n)(Human|User|Assistant): ?")
_ENDS = re.compile(r"\s*(<\|im_end\|>|<\|eot_id\|>|<｜end▁of▁sentence｜>)\s*\Z")


@dataclass(frozen=True, slots=True)
class Message:
    """One turn: `role` is system, user, assistant or tool; `tool_calls` is JSON."""

    role: str
    content: str
    reasoning: str | None = None
    tool_calls: str | None = None
    name: str | None = None

    def text(self) -> str:
        """The content, or the tool calls of a turn that consists of them."""
        return self.content or (
            f"<tool_call>\n{self.tool_calls}\n</tool_call>" if self.tool_calls else ""
        )

    def row(self) -> dict[str, str | None]:
        """The message as an element of the column `traces.messages`."""
        return asdict(self)


def messages_of(value: Any) -> list[Message]:
    """Read a conversation: a list of turns, one turn, or JSON text of either; else `ValueError`."""
    if isinstance(value, str):
        value = _parsed_turns(value) or [{"role": "user", "content": value}]
    if isinstance(value, Mapping):
        keys = ("messages", "conversations", "contents")
        inner = next((value[key] for key in keys if key in value), None)
        value = [value] if inner is None else inner
    if not isinstance(value, Sequence) or isinstance(value, str):
        raise ValueError(f"not a list of turns: {_short(value)}")
    messages = [message for turn in value if turn is not None for message in _turn(turn)]
    if len(messages) == 1 and messages[0].role == "user":
        return rendered_messages(messages[0].content) or messages
    return messages


def last_answer(messages: Sequence[Message]) -> int | None:
    """The place of the last turn of the assistant; None without one."""
    places = range(len(messages) - 1, -1, -1)
    return next((i for i in places if messages[i].role == "assistant"), None)


def exchanges(messages: Sequence[Message]) -> tuple[list[tuple[str, str]], str]:
    """Pairs of request and answer, and the last request, which has no answer yet.

    All turns between two of the assistant are one request, so that no turn is lost.
    """
    pairs: list[tuple[str, str]] = []
    request: list[str] = []
    for message in messages:
        if message.role != "assistant":
            request.append(message.text())
        elif request or not pairs:
            pairs.append(("\n\n".join(request), message.text()))
            request = []
        else:  # several turns of the assistant in a row
            question, answer = pairs.pop()
            pairs.append((question, f"{answer}\n\n{message.text()}"))
    return pairs, "\n\n".join(request)


def is_rendered(text: Any) -> Any:
    """Whether texts (a Polars expression or series) hold the marks of a chat template."""
    rendered = _RENDERED.pattern.replace("?P<", "?<")
    return text.str.contains(rf"{rendered}|\A\s*Human: (?s:.*)\n\nAssistant:")


def holds_turns(text: Any) -> Any:
    """Whether texts (a Polars expression or series) may be conversations as JSON or Python text."""
    return text.str.contains(r"""(?s)\A\s*\[?\s*\{.*['"](?:role|from)['"]\s*:""")


def _parsed_turns(text: str) -> Any:
    """The conversation that JSON text holds, or None: a question may be JSON, too.

    Lists in CSV files are often text of Python.
    """
    if not re.match(r"\s*(?:\[\s*)?\{", text):
        return None
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        try:
            value = ast.literal_eval(text.strip())
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            return None
    turns = value.get("messages") or [value] if isinstance(value, dict) else value
    have_roles = isinstance(turns, list) and all(
        isinstance(t, Mapping) and (t.get("role") or t.get("from")) for t in turns
    )
    return value if turns and have_roles else None


def rendered_messages(text: str) -> list[Message]:
    """The turns of a prompt that a chat template rendered; empty for other text."""
    starts = list(_RENDERED.finditer(text))
    if not starts and text.lstrip().startswith("Human: "):
        starts = list(_SPOKEN.finditer(text))
    messages: list[Message] = []
    if not starts:
        return messages
    for start, end in zip(starts, [*starts[1:], None], strict=True):
        role = next(group for group in start.groups() if group).lower()
        body = text[start.end() : end.start() if end else len(text)]
        content = _ENDS.sub("", body).strip()
        if role in ROLES and (content or end is not None):
            messages.append(Message(ROLES[role], content))
    if (
        len(messages) > 1
        and messages[-1].role == "assistant"
        and _OPENER.match(messages[-1].content)
    ):
        # The template opened the reasoning: kept at the end of the question, where parsing expects
        # it.
        *earlier, question, opener = messages
        messages = [*earlier, Message(question.role, f"{question.content}\n{opener.content}")]
    return messages


def _turn(turn: Any) -> list[Message]:
    if not isinstance(turn, Mapping):
        raise ValueError(f"a turn is an object with role and content, not {_short(turn)}")
    given = next((turn[key] for key in ("role", "from", "speaker") if turn.get(key)), None)
    role = ROLES.get(str(given).lower())
    if role is None:
        raise ValueError(f"unknown role {given!r}: roles are {', '.join(ROLES)}")
    content = next((turn[key] for key in _TEXTS if turn.get(key) is not None), None)
    text, reasoning, calls = _content(content)
    own = next((turn[key] for key in _REASONINGS if isinstance(turn.get(key), str)), None)
    calls = [*calls, *_list(turn.get("tool_calls")), *_list(turn.get("function_call"))]
    if str(given).lower() in _CALLS:
        text, calls = "", [*calls, _parsed(text)]
    name = turn.get("name") or turn.get("tool_call_id")
    return [
        Message(
            role,
            text,
            "\n\n".join(part for part in (own, reasoning) if part) or None,
            json.dumps(_without_nulls(calls), ensure_ascii=False) if calls else None,
            str(name) if name else None,
        )
    ]


def _content(content: Any) -> tuple[str, str | None, list[Any]]:
    """Text, reasoning and tool calls of the content of a turn."""
    if content is None:
        return "", None, []
    if isinstance(content, str):
        return content, None, []
    if isinstance(content, Mapping):
        return _content(object_text(content))
    texts: list[str] = []
    thoughts: list[str] = []
    calls: list[Any] = []
    for part in content:
        kind = part.get("type", "text") if isinstance(part, Mapping) else "text"
        inner = part
        if isinstance(part, Mapping):
            keys = (*_TEXTS, *_REASONINGS)
            inner = next((part[key] for key in keys if part.get(key) is not None), None)
        if kind in ("tool_call", "tool_calls", "tool_use", "function_call"):
            calls.append(_parsed(inner) if inner is not None else part)
        elif inner is None or kind in ("image", "image_url", "audio", "video", "file"):
            raise ValueError(f"a part of type '{kind}' holds no text")
        else:
            text = inner if isinstance(inner, str) else json.dumps(inner, ensure_ascii=False)
            (thoughts if kind in _REASONINGS else texts).append(text)
    return "\n\n".join(texts), "\n\n".join(thoughts) or None, calls


def object_text(value: Mapping[str, Any]) -> str:
    """The text inside an object in place of text; `ValueError` if that is not clear."""
    filled = {key: inner for key, inner in value.items() if inner is not None}
    for key in ("content", "text", "answer", "value", "response", "output", "completion"):
        if isinstance(filled.get(key), str):
            return str(filled[key])
    if len(filled) == 1 and isinstance(next(iter(filled.values())), str):
        return str(next(iter(filled.values())))
    raise ValueError(f"an object with {', '.join(filled) or 'no keys'} instead of text")


def _list(value: Any) -> list[Any]:
    if value is None or value == "":
        return []
    return list(value) if isinstance(value, list | tuple) else [_parsed(value)]


def _parsed(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        return value


def _without_nulls(value: Any) -> Any:
    """The value without the null fields that a columnar format adds to objects of different
    keys.
    """
    if isinstance(value, Mapping):
        return {key: _without_nulls(inner) for key, inner in value.items() if inner is not None}
    if isinstance(value, list):
        return [_without_nulls(inner) for inner in value]
    return value


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 60 else text[:57] + "..."
