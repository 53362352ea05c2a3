"""Configs refuse unknown keys, and a partly given group keeps its other defaults."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import Field

import curate
from curate.config import Config, load, merge, override, parse_yaml, read_yaml, validate
from curate.errors import UsageError

# modules that need optional packages or a GPU
HEAVY = ("curate.engines.vllm", "curate.train.model")
# Values for fields without a default, by name; else 1.
REQUIRED: dict[str, Any] = {
    "benchmarks": ["b.parquet"],
    "carry": {"model": {"first": "@a", "then": "b"}},
    "corpus": "c",
    "dataset": "chain_sum",
    "file": "long-cot",
    "first": "@a",
    "then": "b",
    "k": 1,
    "keep": "TRUE",
    "label": "l",
    "model": "m",
    "models": [{"label": "l", "model": "m"}],
    "name": "n",
    "path": "p.jsonl",
    "problems": "p",
    "reason": "r",
    "recipe": "r1-zero",
    "rounds": 1,
    "rules": "cold-start",
    "source": "files",
    "sources": [{"source": "files", "path": "p.jsonl"}],
    "stages": {"a": {"do": "report"}},
    "teacher": "t",
    "traces": ["t"],
    "where": "TRUE",
}


def config_classes() -> list[type[Config]]:
    """Every config class of the package."""
    for module in pkgutil.walk_packages(curate.__path__, "curate."):
        if not module.name.startswith(HEAVY):
            importlib.import_module(module.name)

    def below(cls: type[Config]) -> Iterator[type[Config]]:
        for child in cls.__subclasses__():
            if child.__module__.startswith("curate."):
                yield child
                yield from below(child)

    return sorted(set(below(Config)), key=lambda cls: (cls.__module__, cls.__name__))


def groups(config: Config) -> Iterator[tuple[tuple[str, ...], Config]]:
    """Every nested config of a config, with the names that lead to it."""
    for name in type(config).model_fields:
        value = getattr(config, name)
        if isinstance(value, Config):
            yield (name,), value
            yield from (((name, *inner), group) for inner, group in groups(value))


def smallest(cls: type[Config]) -> dict[str, Any]:
    """A value for each field without a default, and for further requirements of the whole
    config.
    """
    data = {
        name: REQUIRED.get(name, "x" if field.annotation is str else 1)
        for name, field in cls.model_fields.items()
        if field.is_required()
    }
    if cls.__name__ == "GenerateConfig":
        data |= {"model": "m", "problems": "p"}
    if cls.__name__ == "BenchmarkSource":
        data |= {"dataset": "aime24"}
    if cls.__name__ == "ExamplesConfig":
        data |= {"file": "long-cot"}
    if cls.__name__ in ("RewardTestConfig", "RescoreConfig"):
        data |= {"rewards": {"accuracy": 1.0}}
    if cls.__name__ == "Exploit":
        data |= {"answer": "{wrong}"}
    if cls.__name__ == "RepeatConfig":
        data |= {"seeds": [0], "stages": {"a": {}}}
    if cls.__name__ == "BudgetConfig":
        data |= {"speed": "a", "stages": {"a": {}}}
    return data


def test_every_key_of_every_config_is_described_in_its_json_schema() -> None:
    missing = []
    for cls in config_classes():
        schema = cls.model_json_schema()
        for name, field in schema.get("properties", {}).items():
            group = field.get("$ref") or any("$ref" in part for part in field.get("allOf", []))
            if not group and not field.get("description"):  # a group is described by its class
                missing.append(f"{cls.__name__}.{name}")
    assert not missing


def test_every_nested_default_of_every_config_survives_a_group_given_in_part() -> None:
    walked = 0
    for cls in config_classes():
        if cls.__name__ == "Mapped" or cls.__name__ == "Source":
            continue
        data = smallest(cls)
        default = cls.model_validate(data)
        for path, group in groups(default):
            for name, value in group.model_dump().items():
                given: dict[str, Any] = {name: value}
                for step in reversed(path):
                    given = {step: given}
                where = f"{cls.__name__}: {'.'.join(path)}.{name}"
                assert cls(**merge(data, given)).model_dump() == default.model_dump(), where
                walked += 1
    assert walked > 100  # GRPO alone has seven groups


@pytest.mark.parametrize("build", [lambda cls, data: cls(**data), lambda *a: validate(*a, "test")])
def test_the_reports_schedule_and_sampling_stay_when_one_key_changes(build: Any) -> None:
    from curate.evaluate.job import EvaluateConfig
    from curate.train.config import GRPOConfig, SFTConfig

    grpo = build(GRPOConfig, {"model": "m", "optim": {"lr": 3e-5}})
    assert (grpo.optim.lr, grpo.optim.schedule, grpo.optim.warmup) == (3e-5, "constant", 0)
    models = [{"label": "a", "model": "m"}]
    evaluation = build(
        EvaluateConfig, {"models": models, "problems": "p", "sampling": {"max_tokens": 9}}
    )
    assert (evaluation.sampling.temperature, evaluation.sampling.top_p) == (0.6, 0.95)
    assert evaluation.sampling.max_tokens == 9
    sft = build(SFTConfig, {"model": "m", "corpus": "c", "checkpoint": {"keep_last": 2}})
    assert (sft.checkpoint.every, sft.checkpoint.keep_last) == (50, 2)


class Inner(Config):
    x: int = 1
    y: int = 2


class Middle(Config):
    inner: Inner = Inner(x=10)
    z: int = 3


class Outer(Config):
    middle: Middle = Middle(inner=Inner(y=20), z=30)
    nested: Middle = Field(default_factory=lambda: Middle(z=31))
    size: int = Field(1, ge=1)
    """How large it is."""


def test_defaults_of_two_levels_are_kept_each_by_itself() -> None:
    assert Outer(middle={"inner": {"x": 5}}).middle == Middle(inner=Inner(x=5, y=20), z=30)  # type: ignore[arg-type]
    assert Outer(middle={"z": 4}).middle == Middle(inner=Inner(y=20), z=4)  # type: ignore[arg-type]
    assert Outer(nested={"inner": {"y": 7}}).nested == Middle(inner=Inner(x=10, y=7), z=31)  # type: ignore[arg-type]
    assert Outer(middle=Middle(z=5)).middle == Middle(z=5)  # an instance is taken as it is


def test_the_string_below_a_field_is_its_description() -> None:
    assert Outer.model_fields["size"].description == "How large it is."
    assert Outer.model_json_schema()["properties"]["size"]["description"] == "How large it is."


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"sise": 2}, "sise: no such key; did you mean 'size'?"),
        ({"colour": 2}, "colour: no such key; there are middle, nested, size"),
        ({"middle": {"iner": {}}}, "middle.iner: no such key; did you mean 'inner'?"),
        ({"size": 0}, "size: Input should be greater than or equal to 1 (given: 0)"),
    ],
)
def test_every_wrong_key_is_named(data: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError) as error:
        validate(Outer, data, "file.yaml: stage a")
    assert str(error.value) == f"file.yaml: stage a: invalid config:\n  {message}"


def test_the_keys_that_exist_are_listed_once() -> None:
    with pytest.raises(UsageError) as error:
        validate(Outer, {"colour": 1, "weight": 2}, "file")
    assert str(error.value).count("there are") == 1


def test_overrides_are_applied_in_order_and_make_missing_groups() -> None:
    data = override({"a": {"b": 1}, "c": None}, ["a.b=2", "a.d=[x, 1]", "c.e=null", "a.b=3"])
    assert data == {"a": {"b": 3, "d": ["x", 1]}, "c": {"e": None}}
    with pytest.raises(UsageError, match="'a' is a value, not a group of keys"):
        override({"a": 1}, ["a.b=2"])
    with pytest.raises(UsageError, match="write key=value"):
        override({}, ["ab"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\nb: 2\na: 3\n", "c.yaml:3: not valid YAML: the key 'a' occurs twice"),
        ("a:\n  b: 1\n  b: 1\n", "c.yaml:3: not valid YAML: the key 'b' occurs twice"),
        ("a: [1\n", "not valid YAML"),
        ("- 1\n", "a config is a mapping of keys to values, not a list"),
    ],
)
def test_a_mistake_in_a_file_is_given_with_its_line(
    tmp_path: Path, text: str, message: str
) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(text)
    with pytest.raises(UsageError) as error:
        read_yaml(path)
    assert message in str(error.value)


def test_anchors_and_merges_are_not_duplicate_keys() -> None:
    text = "base: &b {x: 1, y: 2}\nlast: {<<: *b, y: 4}\n"
    assert parse_yaml(text, "here")["last"] == {"x": 1, "y": 4}


def test_the_message_about_a_file_that_is_not_utf8_says_how_to_save_it(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_bytes("name: Größe\n".encode("latin-1"))
    with pytest.raises(UsageError, match="Save it as UTF-8"):
        read_yaml(path)


def test_file_and_overrides_override_the_base(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("size: 2\nmiddle: {z: 9}\n")
    outer = load(Outer, path, ["middle.inner.x=8"], {"size": 4, "middle": {"inner": {"y": 6}}})
    assert outer.size == 2
    assert outer.middle == Middle(inner=Inner(x=8, y=6), z=9)
