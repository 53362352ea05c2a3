"""Lineage follows the chain in the tables, and a model's card next to its weights shows it."""

from __future__ import annotations

import datetime as dt
import json

import pytest
import yaml

from curate.errors import UsageError
from curate.warehouse import Warehouse
from curate.warehouse.card import MARK, write_card
from curate.warehouse.lineage import format_lineage, tree


@pytest.fixture
def chain(tmp_path) -> Warehouse:
    """problems -> traces of a base -> corpus -> a tuned model -> its traces."""
    wh = Warehouse(tmp_path / "wh")
    problems = wh.write(
        "problems", "sums", [{"problem_id": "p", "question": "1 + 1", "source": "s"}], key=1
    )
    base = {"model_hash": "b" * 16, "name": "start", "kind": "base", "path": "/elsewhere"}
    wh.write("models", "base", [base], key=2)
    row = {
        "attempt": 0,
        "job_id": "j",
        "problem_id": "p",
        "sample_index": 0,
        "recipe": "r1-zero",
        "form": "plain",
    }
    row |= {
        "template": "plain",
        "model": "m",
        "engine": "stub",
        "prompt": "1 + 1",
        "finish_reason": "stop",
    }
    first = wh.write(
        "traces", "first", [{"trace_id": "a1" * 16, "model_hash": "b" * 16, **row}], key=3, seed=7,
        parents=[problems.ref, "model:" + "b" * 16], config={"recipe": "r1-zero", "samples": 4},
    )  # fmt: skip
    corpus = wh.write(
        "corpora", "good", [], key=4, parents=[first.ref], config={"rules": "cold-start"}
    )
    tuned = {
        "model_hash": "c" * 16,
        "name": "tuned",
        "kind": "sft",
        "path": "checkpoints/r/model",
        "run_id": "r",
        "step": 9,
        "parent_hash": "b" * 16,
        "parameters": 1234,
        "data": json.dumps({"corpora": [corpus.ref]}),
        "config": json.dumps({"seed": 3, "epochs": 2, "optim": {"lr": 1e-4, "betas": [0.9, 0.95]}}),
    }
    wh.write("models", "tuned", [tuned], key=5)
    wh.write(
        "traces", "second", [{"trace_id": "d2" * 16, "model_hash": "c" * 16, **row}], key=6,
        parents=[problems.ref, "model:" + "c" * 16],
    )  # fmt: skip
    (wh.root / "checkpoints/r/model").mkdir(parents=True)
    return wh


def test_the_chain_goes_from_a_trace_to_the_problems(chain):
    refs = [
        facts["ref"].split("/")[0]
        for _, facts in tree(chain, chain.versions("traces", "second")[0].ref)
    ]
    tuned, start = "model:" + "c" * 16, "model:" + "b" * 16
    assert refs == ["traces", "problems", tuned, "corpora", "traces", "problems", start, start]
    lines = format_lineage(chain, "d2d2d2").splitlines()
    assert lines[0].startswith("trace " + "d2" * 16)
    assert lines[1].startswith("traces/second/")
    assert "recipe r1-zero, samples 4" in "\n".join(lines)
    assert "seed 7" in "\n".join(lines)


def test_the_lineage_of_a_model_shows_its_config_and_corpus(chain):
    lines = format_lineage(chain, "tuned").splitlines()
    assert (
        lines[0] == "model:" + "c" * 16 + ", sft tuned, step 9, seed 3, epochs 2, optim lr 0.0001"
    )
    assert lines[1].startswith("  <- corpora/good/")
    assert "rules cold-start" in lines[1]
    assert lines[-1].endswith("base start, (see above)")
    with pytest.raises(UsageError, match="'nothing' is not a model"):
        format_lineage(chain, "nothing")


def test_the_card_is_next_to_the_weights_and_holds_the_evaluations(chain):
    path = write_card(chain, "c" * 16)
    text = path.read_text()
    assert "started from: start (bbbbbbbbbbbbbbbb)" in text
    assert "parameters: 1,234" in text
    assert format_lineage(chain, "tuned") in text
    assert "Measured" not in text
    row = {
        "evaluation_id": "e",
        "model": "tuned",
        "model_hash": "c" * 16,
        "slice": "all",
        "problems": "sums",
    }
    rows = [
        {
            **row,
            "metric": "pass@1",
            "k": 4,
            "value": 0.5,
            "low": 0.25,
            "high": 0.75,
            "problem_count": 8,
        },
        {**row, "metric": "pass@1", "k": 4, "value": 0.1, "baseline": "start", "problem_count": 8},
        {**row, "metric": "pass@1", "k": 4, "value": 0.9, "slice": "source=x", "problem_count": 2},
    ]
    chain.write("evaluations", "evaluation", rows, key=8)
    text = write_card(chain, "c" * 16).read_text()
    assert "| sums | pass@1 | 0.500 | 0.250 to 0.750 | 8 |" in text
    assert "0.900" not in text
    assert "0.100" not in text


def test_models_from_elsewhere_and_cards_of_others_are_left_alone(chain):
    assert write_card(chain, "b" * 16) is None
    assert write_card(chain, "f" * 16) is None
    path = write_card(chain, "c" * 16)
    path.write_text(path.read_text().replace(MARK, ""))
    assert write_card(chain, "c" * 16) is None
    assert MARK not in path.read_text()


def test_a_prefix_of_several_ids_is_ambiguous(chain):
    more = [{"trace_id": "d2" * 15 + "00", "attempt": 0, "problem_id": "p", "sample_index": 1,
             "recipe": "r1-zero", "form": "r1-zero", "finish_reason": "stop"}]  # fmt: skip
    chain.write("traces", "third", more, key=7)
    with pytest.raises(UsageError, match="'d2d2' is ambiguous"):
        format_lineage(chain, "d2d2")
    assert "traces/third" in format_lineage(chain, "d2" * 15 + "00")


def test_the_card_has_front_matter_that_the_hub_reads(chain):
    base = chain.root / "base"
    base.mkdir()
    (base / "README.md").write_text("---\nlicense: apache-2.0\n---\n# A base\n")
    row = {"model_hash": "b" * 16, "name": "owner/start", "kind": "base", "path": str(base)}
    chain.write("models", "base", [row | {"created_at": dt.datetime.now(dt.UTC)}], key=9)
    head = write_card(chain, "c" * 16).read_text().split("---")[1]
    values = yaml.safe_load(head)
    assert values["base_model"] == "owner/start"
    assert values["license"] == "apache-2.0"
    assert values["library_name"] == "transformers"
    assert {"curate", "sft"} <= set(values["tags"])


def test_a_model_that_is_its_own_parent_is_read_once(chain, monkeypatch):
    """Training without any signal changes no weight, and so ends in the model it started from."""
    row = {"model_hash": "b" * 16, "name": "start", "kind": "grpo", "path": "start"}
    row |= {"parent_hash": "b" * 16, "created_at": dt.datetime.now(dt.UTC)}
    chain.write("models", "again", [row], key=10)
    queries = []
    sql = Warehouse.sql
    monkeypatch.setattr(Warehouse, "sql", lambda *a: queries.append(a[1]) or sql(*a))
    text = write_card(chain, "c" * 16).read_text()
    assert yaml.safe_load(text.split("---")[1])["base_model"] == "start"
    assert sum("FROM models" in query for query in queries) < 6
