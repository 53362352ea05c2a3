"""Names inside a config: `$name` is a variable, `@stage` the output of a stage, `@stage.fact` a
fact about it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from curate.errors import UsageError, did_you_mean
from curate.pipeline.stages import Done, Stage


class _Several(list[str]):
    """Several names that replace one."""


def _map_texts(value: Any, change: Callable[[str], Any]) -> Any:
    """The value with every text in it, at any depth, replaced by `change(text)`; what is
    `_Several` becomes that many entries of the list that it is in.
    """
    if isinstance(value, str):
        return change(value)
    if isinstance(value, Mapping):
        return {key: _map_texts(inner, change) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        entries: list[Any] = []
        for inner in value:
            changed = _map_texts(inner, change)
            entries += changed if isinstance(changed, _Several) else [changed]
        return entries
    return value


def _texts(value: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """Every text in a value, at any depth, with the key that it is under."""
    if isinstance(value, str):
        yield key, value
    elif isinstance(value, Mapping):
        for name, inner in value.items():
            yield from _texts(inner, str(name))
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _texts(inner, key)


def variables(value: Any) -> list[str]:
    """Names of the variables that a config mentions."""
    return [text[1:] for _, text in _texts(value) if text.startswith("$")]


def fill(value: Any, values: Mapping[str, Any], where: str) -> Any:
    """Replace each `$name` in a config by the variable of that name. UsageError for an unknown
    one.
    """

    def filled(text: str) -> Any:
        if not text.startswith("$"):
            return text
        name = text[1:]
        if name not in values:
            names = ", ".join(values) or "none"
            hint = did_you_mean(name, values)
            raise UsageError(f"{where}: no variable '{name}' in vars; there are {names}{hint}")
        return values[name]

    return _map_texts(value, filled)


def stage_names(value: Any) -> list[str]:
    """Names of the stages that a config mentions."""
    return [text[1:].split(".")[0] for _, text in _texts(value) if text.startswith("@")]


def rename(config: Mapping[str, Any], names: Mapping[str, str | list[str]]) -> dict[str, Any]:
    """Rename `@old` to `@new` in the config of a stage, and in `after`.

    A name that several stages replace becomes a list, or more entries of the list that it is in.
    """

    def renamed(text: str) -> Any:
        if not text.startswith("@"):
            return text
        name, dot, fact = text[1:].partition(".")
        new = names.get(name, name)
        if isinstance(new, str):
            return f"@{new}{dot}{fact}"
        return _Several(f"@{one}{dot}{fact}" for one in new)

    result: dict[str, Any] = _map_texts(config, renamed)
    if isinstance(after := result.get("after"), list):
        replaced = [names.get(name, name) for name in after]
        result["after"] = [
            one for new in replaced for one in ([new] if isinstance(new, str) else new)
        ]
    return result


def resolve(value: Any, done: Mapping[str, Done], stage: str = "") -> Any:
    """The config of `stage` with each `@name` replaced by that stage's output."""

    def resolved(text: str) -> Any:
        if not text.startswith("@"):
            return text
        name, _, fact = text[1:].partition(".")
        output = done[name].facts.get(fact) if fact else done[name].value
        if not output:
            what = f"fact '{fact}'" if fact else "output to name"
            raise UsageError(f"stage {stage}: '{text}': stage {name} gives no {what}")
        return output

    return _map_texts(value, resolved)


def versions(traces: Sequence[str], done: Mapping[str, Done]) -> list[str]:
    """The versions of traces that the named stages produced, without those that other runs
    added to the same dataset.
    """
    names: list[str] = []
    for name in traces:
        refs = done[name[1:]].refs if name.startswith("@") and name[1:] in done else []
        of_stage = [ref for ref in refs if ref.startswith("traces/")]
        names += of_stage or [resolve(name, done)]
    return names


# kind of output that a key needs from the stage it names
WANTED = {
    "corpus": "corpus",
    "model": "model",
    "problems": "problems",
    "reference": "model",
    "teacher": "model",
    "traces": "traces",
}


def check_outputs(stage: Stage, stages: Mapping[str, Stage], where: str) -> None:
    """UsageError if a key names a stage that gives another kind of output, such as `corpus:
    "@judge"`.
    """
    for key, text in _texts(stage.config):
        if not text.startswith("@") or "." in text or key not in WANTED:
            continue
        other = stages[text[1:]]
        gives, wanted = other.kind.gives, WANTED[key]
        if gives != wanted:
            fitting = [s.name for s in stages.values() if s.kind.gives == wanted]
            hint = f"; these stages do: {', '.join(fitting)}" if fitting else ""
            raise UsageError(
                f"{where}: {key}: '{text}' is not a {wanted}: stage {other.name} (do: "
                f"{other.do}) gives "
                f"{gives or 'no output that can be named'}{hint}"
            )
