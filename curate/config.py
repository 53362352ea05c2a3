"""Configs: pydantic models that refuse unknown keys, read from YAML, with `key=value` overrides.

Every config of the package derives from `Config`. The string below a field documents it, for
`--help`, the docs and the JSON schema.

A group whose default is an instance, such as `optim: OptimConfig =
OptimConfig(schedule="constant")`, keeps that default under whatever is given: `optim: {lr:
3.0e-5}` changes the learning rate only.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from curate.errors import UsageError, did_you_mean


class Config(BaseModel):
    """Base of every config: unknown keys are errors, and values do not change after validation."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, protected_namespaces=(), use_attribute_docstrings=True
    )

    @model_validator(mode="before")
    @classmethod
    def _fill_groups(cls, data: Any) -> Any:
        """Put the default of a group under a group that is given in part."""
        if not isinstance(data, Mapping):
            return data
        filled = dict(data)
        for name, field in cls.model_fields.items():
            if isinstance(filled.get(name), Mapping):
                default = field.get_default(call_default_factory=True, validated_data={})
                if isinstance(default, Config):
                    filled[name] = _over_default(default, filled[name])
        return filled


C = TypeVar("C", bound=BaseModel)


def _over_default(default: Config, given: Mapping[str, Any]) -> dict[str, Any]:
    """`given` over the fields that `default` sets. Fields it leaves alone have the default of
    their class.
    """
    filled = {name: getattr(default, name) for name in default.model_fields_set}
    for name, value in given.items():
        inner = filled.get(name)
        if isinstance(inner, Config) and isinstance(value, Mapping):
            filled[name] = _over_default(inner, value)
        else:
            filled[name] = value
    return filled


# -- reading -------------------------------------------------------------------------------------


class _Loader(yaml.SafeLoader):
    """YAML in which a key that occurs twice is an error: the first value would be lost silently."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        keys: set[str] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode) or key.tag == "tag:yaml.org,2002:merge":
                continue
            if key.value in keys:
                raise yaml.composer.ComposerError(
                    None, None, f"the key '{key.value}' occurs twice", key.start_mark
                )
            keys.add(key.value)
        return node


# A hand-written config is far below both. Ours.
YAML_CHARACTERS = 10_000_000
EXPANDED_NODES = 1_000_000


def _expanded(value: Any, sizes: dict[int, int]) -> int:
    """Number of values that a YAML value holds if each alias counts as a copy."""
    if not isinstance(value, Mapping | list):
        return 1
    if id(value) not in sizes:
        sizes[id(value)] = EXPANDED_NODES + 1  # a value that holds itself has no end
        items = [*value.keys(), *value.values()] if isinstance(value, Mapping) else value
        sizes[id(value)] = 1 + sum(_expanded(item, sizes) for item in items)
    return sizes[id(value)]


def parse_yaml(text: str, where: str | Path) -> Any:
    """The value of a YAML text. UsageError gives the file and the line of a mistake.

    Texts that are too long, nested too deeply, or that aliases would expand to more than
    EXPANDED_NODES values are refused.
    """
    if len(text) > YAML_CHARACTERS:
        raise UsageError(f"{where}: a config has at most {YAML_CHARACTERS:,} characters")
    try:
        value = yaml.load(text, _Loader)
        if _expanded(value, {}) > EXPANDED_NODES:
            raise UsageError(f"{where}: aliases make it more than {EXPANDED_NODES:,} values")
        return value
    except RecursionError:
        raise UsageError(f"{where}: nested too deeply") from None
    except ValueError as error:  # such as a number of thousands of digits
        raise UsageError(f"{where}: not valid YAML: {error}") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f"{where}:{mark.line + 1}" if mark else str(where)
        raise UsageError(f"{line}: not valid YAML: {getattr(error, 'problem', error)}") from error


def read_yaml(path: str | Path) -> dict[str, Any]:
    """The mapping in a YAML file. UsageError gives the file and the line of a mistake."""
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UsageError(f"no config file {path}") from None
    except UnicodeDecodeError as error:
        raise UsageError(f"cannot read {path}: {error}. Save it as UTF-8") from error
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error}") from error
    data = parse_yaml(text, path)
    if data is None:
        return {}
    if not isinstance(data, dict):
        raise UsageError(
            f"{path}: a config is a mapping of keys to values, not a {type(data).__name__}"
        )
    return data


def override(data: Mapping[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """The mapping with each `a.b=value` applied. Values are YAML: `4`, `0.5`, `[a, b]`, `null`."""
    result = _copy(data)
    for item in overrides:
        key, sign, text = item.partition("=")
        if not sign or not key:
            raise UsageError(
                f"override '{item}': write key=value, for example sampling.temperature=0.6"
            )
        try:
            value = parse_yaml(text, "value")
        except UsageError as error:
            raise UsageError(f"override '{item[:80]}': {error}") from error
        group, last = group_at(result, key, f"override '{item}'")
        group[last] = value
    return result


def group_at(data: dict[str, Any], key: str, where: str) -> tuple[dict[str, Any], str]:
    """The group of keys that holds the dotted `key`, created if missing, and the last name of
    the key.
    """
    *path, last = key.split(".")
    group = data
    for name in path:
        if group.get(name) is None:
            group[name] = {}
        if not isinstance(group[name], dict):
            raise UsageError(f"{where}: '{name}' is a value, not a group of keys")
        group = group[name]
    return group, last


def merge(low: Mapping[str, Any], high: Mapping[str, Any]) -> dict[str, Any]:
    """`high` over `low`: groups of keys are merged, everything else is replaced."""
    result = _copy(low)
    for key, value in high.items():
        if isinstance(value, Mapping) and isinstance(result.get(key), dict):
            result[key] = merge(result[key], value)
        else:
            result[key] = value
    return result


def _copy(data: Mapping[str, Any]) -> dict[str, Any]:
    return {k: _copy(v) if isinstance(v, Mapping) else v for k, v in data.items()}


def load(
    model: type[C],
    path: str | Path | None,
    overrides: Sequence[str] = (),
    base: Mapping[str, Any] = MappingProxyType({}),
) -> C:
    """A config from `base`, a file and overrides; each goes over the ones before it."""
    data = merge(base, read_yaml(path)) if path else _copy(base)
    return validate(model, override(data, overrides), str(path) if path else "the config")


# -- checking ------------------------------------------------------------------------------------


def validate(model: type[C], data: Mapping[str, Any], where: str) -> C:
    """The config. UsageError names every wrong key, with the closest key that exists."""
    try:
        return model.model_validate(dict(data))
    except ValidationError as error:
        raise UsageError(invalid(where, explain(model, error))) from None


def invalid(where: str, lines: Sequence[str]) -> str:
    """The message about an invalid config: one line per mistake."""
    return "\n".join([f"{where}: invalid config:", *(f"  {line}" for line in lines)])


def explain(model: type[BaseModel], error: ValidationError) -> list[str]:
    """One line per mistake in a config."""
    lines = []
    listed: set[tuple[Any, ...]] = set()  # groups whose keys were listed: once is enough
    for problem in error.errors():
        place = problem["loc"]
        key = ".".join(str(part) for part in place)
        if problem["type"] == "extra_forbidden":
            keys = _fields_at(model, place[:-1])
            hint = did_you_mean(str(place[-1]), keys)
            if not hint and keys and place[:-1] not in listed:
                listed.add(place[:-1])
                hint = f"; there are {', '.join(sorted(keys))}"
            lines.append(f"{key}: no such key{hint}")
        elif problem["type"] == "missing":
            lines.append(f"{key}: missing")
        else:
            message = problem["msg"].removeprefix("Value error, ")
            given = problem.get("input")
            # A check of the whole group names its keys itself; the group as a whole says nothing.
            shown = "" if isinstance(given, Mapping | BaseModel) else f" (given: {given!r:.80})"
            lines.append(f"{key}: {message}{shown}" if key else message)
    return lines


def _fields_at(model: type[BaseModel], place: Sequence[Any]) -> list[str]:
    """Names of the fields of the model that `place` leads to; empty if that is not a model."""
    models = [model]
    for part in place:
        inner: list[type[BaseModel]] = []
        for candidate in models:
            if part in candidate.model_fields:
                inner += _models_in(candidate.model_fields[part].annotation)
        # A position in a list, or the name of a member of a union, stays at the same models.
        models = inner or models
    return list(dict.fromkeys(name for m in models for name in m.model_fields))


def _models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    """Every model that a type annotation mentions: in a union, a list or a mapping."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in get_args(annotation):
        yield from _models_in(argument)
