"""JSON Schemas of the configs, for editors that complete and check YAML.

    # yaml-language-server: $schema=../schemas/json/pipeline.json

A pipeline's schema selects the kind of a stage by its `do`. A value of any type may also be
`$variable` or `@stage`. `curate schema NAME` prints a schema; those that the
shipped files point to are in `schemas/json`, and a test compares them.
"""

from __future__ import annotations

import json
from typing import Any

from pydantic import BaseModel

from curate.annotate.job import AnnotateConfig
from curate.errors import UsageError, did_you_mean
from curate.evaluate.job import EvaluateConfig
from curate.filter.job import FilterConfig
from curate.filter.rules import RuleSet
from curate.generate.config import GenerateConfig
from curate.imports.job import ImportConfig
from curate.pipeline.config import LoopConfig, PipelineConfig, RepeatConfig
from curate.problems.store import ProblemsStage
from curate.report.job import ReportConfig
from curate.train.config import DistillConfig, DPOConfig, SFTConfig
from curate.train.stages import GRPOStage
from curate.train.toy_base import BaseConfig

DIALECT = "https://json-schema.org/draft/2020-12/schema"
# Kind of stage to its config. GRPO's keys are also those of on-policy distillation.
STAGES: dict[str, list[type[BaseModel]]] = {
    "problems": [ProblemsStage],
    "generate": [GenerateConfig],
    "import": [ImportConfig],
    "annotate": [AnnotateConfig],
    "filter": [FilterConfig],
    "base": [BaseConfig],
    "sft": [SFTConfig],
    "distill": [DistillConfig, GRPOStage],
    "dpo": [DPOConfig],
    "grpo": [GRPOStage],
    "evaluate": [EvaluateConfig],
    "report": [ReportConfig],
}
NAMES = ("pipeline", "rules", *STAGES)
# a variable or the output of a stage, instead of any value
REFERENCE = {"type": "string", "pattern": "^[$@]"}
# keys of every stage, in addition to those of its kind
COMMON = {
    "do": {"type": "string", "description": "the kind of stage, or your own as 'module:name'"},
    "after": {
        "type": "array",
        "items": {"type": "string"},
        "description": "stages that come first, although no key names them",
    },
    "processes": {
        "anyOf": [{"type": "integer", "minimum": 1}, REFERENCE],
        "description": "ranks that train together",
    },
}


def schema(name: str) -> dict[str, Any]:
    """Return the JSON Schema of a config by name, one of NAMES. UsageError for another name."""
    if name == "pipeline":
        body = _pipeline()
    elif name == "rules":
        body = RuleSet.model_json_schema()
    elif name in STAGES:
        body = _any_of(STAGES[name])
    else:
        hint = did_you_mean(name, NAMES)
        raise UsageError(f"no schema '{name}': choose one of {', '.join(NAMES)}{hint}")
    return {"$schema": DIALECT, **body}


def text(name: str) -> str:
    """The schema as a file."""
    return json.dumps(schema(name), indent=1, ensure_ascii=False, sort_keys=True) + "\n"


def _any_of(models: list[type[BaseModel]]) -> dict[str, Any]:
    if len(models) == 1:
        return models[0].model_json_schema()
    definitions: dict[str, Any] = {}
    for model in models:
        one = model.model_json_schema()
        definitions |= one.pop("$defs", {}) | {model.__name__: one}
    return {
        "anyOf": [{"$ref": f"#/$defs/{model.__name__}"} for model in models],
        "$defs": definitions,
    }


def _pipeline() -> dict[str, Any]:
    """A pipeline whose stages are checked by their `do`, groups by the stages inside."""
    whole = PipelineConfig.model_json_schema()
    own = whole.pop("$defs", {})
    definitions: dict[str, Any] = {k: _with_references(v) for k, v in own.items()}
    whole["$defs"] = definitions
    cases = []
    for kind, models in STAGES.items():
        variants = []
        for model in models:
            one = model.model_json_schema()
            definitions |= {k: _with_references(v) for k, v in one.pop("$defs", {}).items()}
            definitions[model.__name__] = _stage(one)
            variants.append({"$ref": f"#/$defs/{model.__name__}"})
        cases.append(_case(kind, variants[0] if len(variants) == 1 else {"anyOf": variants}))
    for kind, group in (("loop", LoopConfig), ("repeat", RepeatConfig)):
        one = group.model_json_schema()
        definitions |= one.pop("$defs", {})
        one["properties"]["stages"] = _stages_property(one["properties"]["stages"])
        definitions[group.__name__] = _stage(one)
        cases.append(_case(kind, {"$ref": f"#/$defs/{group.__name__}"}))
    definitions["Stage"] = {"type": "object", "required": ["do"], "allOf": cases}
    whole["properties"]["stages"] = _stages_property(whole["properties"]["stages"])
    return whole


def _case(kind: str, then: dict[str, Any]) -> dict[str, Any]:
    return {
        "if": {"properties": {"do": {"const": kind}}, "required": ["do"]},
        "then": then,
    }


def _stages_property(written: dict[str, Any]) -> dict[str, Any]:
    return {**written, "additionalProperties": {"$ref": "#/$defs/Stage"}}


def _stage(config: dict[str, Any]) -> dict[str, Any]:
    """The schema of a stage from that of its config: with the keys of every stage, and without
    what the pipeline fills in (a name, the outputs of other stages are references).
    """
    body = _with_references(config)
    body["properties"] = {**body.get("properties", {}), **COMMON}
    return body


def _with_references(written: dict[str, Any]) -> dict[str, Any]:
    """A schema whose properties may also be a variable or the output of a stage."""
    if "properties" not in written:
        return written
    properties = {}
    for name, value in written["properties"].items():
        kept = {k: v for k, v in value.items() if k in ("description", "default", "title")}
        rest = {k: v for k, v in value.items() if k not in kept}
        properties[name] = {**kept, "anyOf": [rest, REFERENCE]} if rest else value
    return {**written, "properties": properties}
