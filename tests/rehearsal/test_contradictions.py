"""Rules that no trace can pass are told from rules that a random model's traces do not pass."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import duckdb
import pytest

from curate.filter.rules import RuleSet, load_rules
from curate.rehearsal.contradictions import impossible
from curate.warehouse import Warehouse
from curate.warehouse.sql import connect


@pytest.fixture
def connection(tmp_path: Path) -> Iterator[duckdb.DuckDBPyConnection]:
    root = Warehouse(tmp_path / "wh").create().root
    with connect(root, views=False) as opened:
        yield opened


def rules(*keeps: str) -> RuleSet:
    named = [{"name": f"r{i}", "keep": sql, "reason": "a test"} for i, sql in enumerate(keeps)]
    return RuleSet(name="test", rules=named)


@pytest.mark.parametrize("name", ["cold-start", "rejection", "unfiltered"])
def test_the_shipped_rules_can_be_passed(connection: duckdb.DuckDBPyConnection, name: str) -> None:
    assert impossible(connection, load_rules(name)) == []


@pytest.mark.parametrize(
    ("keeps", "names"),
    [
        (("completion_tokens > 100 AND completion_tokens < 50",), ["r0"]),
        (("verdict = 'correct'", "well_formed", "verdict = 'wrong'"), ["r0", "r2"]),
        (("well_formed", "recipe = 'distil'"), ["r1"]),  # the stages' recipe is distill
        (("completion_tokens >= 9000",), ["r0"]),  # they sample at most 8,192 tokens
        (("completion_tokens >= 8000 AND recipe = 'distill'",), []),
        (("quality > 0.9", "loop_repeats < 2", "dominant_language = 'en'"), []),
    ],
)
def test_contradictions_are_named(
    connection: duckdb.DuckDBPyConnection, keeps: tuple[str, ...], names: list[str]
) -> None:
    fixed, most = {"recipe": ["distill"]}, {"completion_tokens": 8192.0}
    assert impossible(connection, rules(*keeps), fixed=fixed, most=most) == names


@pytest.mark.parametrize(
    "keep", ["labels.score > 1", r"regexp_matches(completion, '^\d+ [a-z]+$')"]
)
def test_what_cannot_be_searched_is_not_decided(
    connection: duckdb.DuckDBPyConnection, keep: str
) -> None:
    assert impossible(connection, rules(keep)) is None
