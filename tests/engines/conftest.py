"""Tiny models, created once per session."""

from __future__ import annotations

from pathlib import Path

import pytest

from curate.engines.testing.tiny import make_tiny_model


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("models") / "tiny", scale=0.3)


@pytest.fixture(scope="session")
def tiny_other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same architecture with other weights."""
    return make_tiny_model(tmp_path_factory.mktemp("models") / "other", seed=1, scale=0.3)


@pytest.fixture(scope="session")
def tiny_ending(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that ends its texts with either of its end tokens."""
    return make_tiny_model(tmp_path_factory.mktemp("models") / "ending", seed=2, end_bias=2.0)
