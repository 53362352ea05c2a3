"""Configs: pydantic models that refuse unknown keys, read from YAML, with `key=value` overrides.

Each part declares its own (`EngineConfig`, `SFTConfig`, …); the jobs that join parts are declared here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from curate.errors import UsageError


class Config(BaseModel):
    """Base of every config: unknown keys are errors, values do not change after validation."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


C = TypeVar("C", bound=BaseModel)


def read_yaml(path: str | Path) -> dict[str, Any]:
    """A YAML mapping; UsageError names the file and the line that is wrong."""
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UsageError(f"no config file {path}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"cannot read {path}: {error}") from error
    try:
        data = yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{path}:{mark.line + 1}" if mark else str(path)
        raise UsageError(f"{where}: not valid YAML: {getattr(error, 'problem', error)}") from error
    if data is None:
        return {}
    if not isinstance(data, dict):
        raise UsageError(
            f"{path}: a config is a mapping of keys to values, not a {type(data).__name__}"
        )
    return data


def override(data: Mapping[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """The mapping with `a.b=value` laid over it; values are read as YAML (`4`, `0.5`, `[a, b]`, `null`)."""
    result = _copy(data)
    for item in overrides:
        key, sign, text = item.partition("=")
        if not sign or not key:
            raise UsageError(
                f"override '{item}': write key=value, for example sampling.temperature=0.6"
            )
        try:
            value = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise UsageError(f"override '{item}': the value is not valid YAML") from error
        place = result
        *path, last = key.split(".")
        for name in path:
            inner = place.setdefault(name, {})
            if not isinstance(inner, dict):
                raise UsageError(f"override '{item}': '{name}' is a value, not a group of keys")
            place = inner
        place[last] = value
    return result


def merge(low: Mapping[str, Any], high: Mapping[str, Any]) -> dict[str, Any]:
    """`high` laid over `low`, groups of keys merged, everything else replaced."""
    result = _copy(low)
    for key, value in high.items():
        if isinstance(value, Mapping) and isinstance(result.get(key), dict):
            result[key] = merge(result[key], value)
        else:
            result[key] = value
    return result


def _copy(data: Mapping[str, Any]) -> dict[str, Any]:
    return {k: _copy(v) if isinstance(v, Mapping) else v for k, v in data.items()}


def validate(model: type[C], data: Mapping[str, Any], where: str) -> C:
    """The config, or a UsageError that names every key that is wrong and the keys there are."""
    try:
        return model.model_validate(dict(data))
    except ValidationError as error:
        lines = []
        for problem in error.errors():
            key = ".".join(str(part) for part in problem["loc"]) or "(config)"
            if problem["type"] == "extra_forbidden":
                known = ", ".join(sorted(_fields_at(model, problem["loc"][:-1])))
                lines.append(f"  {key}: no such key" + (f"; there are {known}" if known else ""))
            elif problem["type"] == "missing":
                lines.append(f"  {key}: missing")
            else:
                given = repr(problem.get("input"))
                lines.append(
                    f"  {key}: {problem['msg'].removeprefix('Value error, ')} (given: {given[:80]})"
                )
        raise UsageError(f"{where} is not right:\n" + "\n".join(lines)) from None


def _fields_at(model: type[BaseModel], loc: Sequence[Any]) -> list[str]:
    """Names of the fields of the model that `loc` leads to; empty where that is not plain."""
    current: Any = model
    for part in loc:
        field = getattr(current, "model_fields", {}).get(part)
        current = field.annotation if field is not None else None
        for option in getattr(current, "__args__", ()):
            if isinstance(option, type) and issubclass(option, BaseModel):
                current = option
    return list(getattr(current, "model_fields", {}))


def load(
    model: type[C],
    path: str | Path | None,
    overrides: Sequence[str] = (),
    base: Mapping[str, Any] = MappingProxyType({}),
) -> C:
    """A config from defaults, a file and overrides, each laid over what stands before it."""
    data = merge(base, read_yaml(path)) if path else _copy(base)
    return validate(model, override(data, overrides), str(path) if path else "the config")
