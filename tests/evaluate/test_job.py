"""The evaluation job from sampling to the stored table, on an engine without a model."""

import pytest

from curate.engines.testing.tiny import make_tiny_model
from curate.evaluate.job import EvaluateConfig, run
from curate.job import Context

pytest.importorskip("reasoning_gym")
pytestmark = pytest.mark.slow

SUMS = {"min_terms": 3, "max_terms": 3, "min_digits": 1, "max_digits": 1}


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory):
    """Two models for which the stub gives the same text, evaluated twice: context and results."""
    home = tmp_path_factory.mktemp("evaluate")
    models = [
        {"label": name, "model": str(make_tiny_model(home / name, seed=i))}
        for i, name in enumerate("ab")
    ]
    source = {"source": "procedural", "dataset": "chain_sum", "size": 40, "params": SUMS}
    config = EvaluateConfig.model_validate(
        {
            "models": models,
            "problems": {"sources": [source], "held_out": 25},
            "samples": 4,
            "sampling": {"temperature": 0.6, "top_p": 0.95, "max_tokens": 400},
            "engine": {"name": "stub", "args": {"right": 0.6}},
            "resamples": 200,
        }
    )
    with Context(home / "warehouse") as context:
        yield context, run(config, context), run(config, context)


def value(context: Context, metric: str, model: str, baseline: str | None = None) -> float:
    rows = context.warehouse.sql(
        "SELECT value FROM evaluations "
        "WHERE metric = ? AND model = ? AND baseline IS NOT DISTINCT FROM ? "
        "AND slice = 'all' AND k = 4",
        [metric, model, baseline],
    )
    assert rows.height == 1
    return rows.item()


def test_the_stored_numbers_are_those_of_the_verdicts(evaluated):
    context, first, _ = evaluated
    assert first.rows == 2 * 25 * (4 + 1)  # four samples and one at temperature 0
    right = context.warehouse.sql(
        "SELECT avg((verdict = 'correct')::INT) FROM annotated WHERE temperature > 0"
    ).item()
    assert 0.3 < right < 0.9
    assert value(context, "pass@1", "a") == pytest.approx(right)
    assert value(context, "format", "a") == 1
    assert value(context, "per answer", "a") == pytest.approx(right)
    greedy = context.warehouse.sql(
        "SELECT avg((verdict = 'correct')::INT) FROM annotated WHERE temperature = 0"
    ).item()
    assert value(context, "greedy", "a") == pytest.approx(greedy)
    assert value(context, "pass@1", "a") <= value(context, "pass@k", "a") <= 1


def test_equal_texts_have_no_difference(evaluated):
    context, _, _ = evaluated
    assert all(
        value(context, metric, "b", "a") == 0 for metric in ("pass@1", "pass@k", "cons@k", "length")
    )


def test_only_held_out_problems_are_used(evaluated):
    context, _, _ = evaluated
    assert context.warehouse.sql("SELECT DISTINCT split FROM annotated").item() == "held-out"
    assert context.warehouse.sql("SELECT count(DISTINCT problem_id) FROM annotated").item() == 25


def test_a_second_run_samples_nothing_and_gives_the_same_table(evaluated):
    _, first, second = evaluated
    assert second.rows == 0
    assert second.facts == first.facts
    assert "25 problems, 4 samples each" in first.facts["table"]
    assert "b - a" in first.facts["table"]
