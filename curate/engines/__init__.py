"""Engines complete prompts: vLLM, OpenAI-compatible servers, transformers, a stub for tests."""

from curate.engines.base import Engine, EngineConfig
from curate.engines.models import ModelRef, resolve_model, weights_hash
from curate.engines.registry import describe_choice, model_for, open_engine

__all__ = [
    "Engine",
    "EngineConfig",
    "ModelRef",
    "describe_choice",
    "model_for",
    "open_engine",
    "resolve_model",
    "weights_hash",
]
