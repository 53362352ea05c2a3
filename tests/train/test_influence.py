"""Gradient sketches: they keep inner products, foretell what a step does, and become a column."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

torch = pytest.importorskip("torch")

from curate.errors import UsageError
from curate.filter import job as filtering
from curate.job import Context
from curate.train import influence
from curate.train.config import InfluenceConfig
from curate.train.influence import Sketcher, root_mean_square
from curate.train.model.layout import PromptCompletion
from curate.warehouse import Warehouse
from curate.warehouse.traces import trace_frame, with_parts
from tests.train.conftest import policy_of

FILTER = filtering.FilterConfig(rules="unfiltered", corpus="helpful", template="plain")
FP32 = {"precision": "fp32", "device": "cpu"}


def flat(gradients: dict[str, Any]) -> Any:
    return torch.cat([g.reshape(-1) for g in gradients.values()]).double()


def copied(gradients: dict[str, Any]) -> dict[str, Any]:
    return {name: g.clone() for name, g in gradients.items()}


def test_sketches_keep_inner_products(tiny_dir: Path, sequences: list[PromptCompletion]) -> None:
    """Over several projections the mean is the true value; one is close to it."""
    policy = policy_of(tiny_dir, double=False, device="cpu")
    gradients = [copied(Sketcher(policy, 2).gradients(s)) for s in sequences[:4]]
    true = torch.stack([flat(g) for g in gradients])
    true = torch.nn.functional.normalize(true, dim=1)
    errors, products = [], []
    for seed in range(20):
        sketcher = Sketcher(policy, 48, seed)
        sketches = torch.stack([sketcher.sketch(g)[0] for g in gradients]).double()
        norms = torch.tensor([float(flat(g).norm()) for g in gradients], dtype=torch.float64)
        products.append((sketches @ sketches.T) / torch.outer(norms, norms))
        errors.append((products[-1] - true @ true.T).abs().max())
    assert (torch.stack(products).mean(0) - true @ true.T).abs().max() < 0.1
    assert torch.stack(errors).median() < 0.3
    assert (true @ true.T).min() < 0.5, "parallel gradients prove nothing"


def test_influence_foretells_what_a_step_does_to_a_target(
    tiny_dir: Path, sequences: list[PromptCompletion]
) -> None:
    policy = policy_of(tiny_dir, double=False, device="cpu")
    sketcher = Sketcher(policy, 64)
    target, rate = sequences[0], 1e-3
    aim, aim_norm = sketcher.sketch(sketcher.gradients(target))

    def loss() -> float:
        return -float(policy.all_logprobs([target])[0].double().mean())

    before, state = loss(), copied(dict(policy.model.state_dict()))
    foretold, happened = [], []
    for sequence in sequences:
        gradients = copied(sketcher.gradients(sequence))
        sketch, norm = sketcher.sketch(gradients)
        foretold.append(float(sketch @ aim))
        with torch.no_grad():
            for name, parameter in policy.model.named_parameters():
                parameter -= rate * gradients[name]
        happened.append(before - loss())
        policy.model.load_state_dict(state)
        assert norm == pytest.approx(float(flat(gradients).norm()), rel=1e-4)
    assert aim_norm > 0
    assert np.corrcoef(foretold, happened)[0, 1] > 0.9
    assert foretold[0] == max(foretold), "nothing helps a text more than itself"


def test_the_root_mean_square_by_hand() -> None:
    gradients = [{"w": torch.tensor([3.0, 0.0])}, {"w": torch.tensor([1.0, 0.0])}]
    root = root_mean_square(iter(gradients), 2)["w"]
    high = 5**0.5
    assert root.tolist() == pytest.approx([high + 0.005 * high, 0.005 * high])


@pytest.fixture
def harvest(tmp_path: Path) -> Iterator[Context]:
    """Traces of two kinds: copies of the targets' solutions, and other text."""
    context = Context(Warehouse(tmp_path / "wh"))
    problems = [
        {"problem_id": f"p{i}", "question": f"say {c}", "reference": c, "solution": f"it is {c}"}
        | {"verifier": "exact", "split": "held-out" if i < 4 else "train"}
        for i, c in enumerate("abcdefgh")
    ]
    traces = []
    for i, c in enumerate("efgh"):
        texts = {
            "alike": f"<think> it is {c} </think> <answer> {c} </answer>",
            "noise": "Q7%#!" * 6,
        }
        for kind, text in texts.items():
            traces.append(
                {"trace_id": f"{kind}-{i}", "attempt": 0, "problem_id": f"p{i + 4}"}
                | {"sample_index": 0, "recipe": "r1-zero", "form": "r1-zero", "prompt": "say"}
                | {"template": "plain@1"}
                | {"completion": text, "finish_reason": "stop"}
            )
    context.warehouse.write("problems", "letters", problems, key=1)
    context.warehouse.write("traces", "harvest", with_parts(trace_frame(traces)), key=1)
    yield context
    context.close()


def config(tiny_dir: Path, **changes: Any) -> InfluenceConfig:
    data = {"model": str(tiny_dir), "traces": ["harvest"], "problems": "letters", "targets": 4}
    return InfluenceConfig.model_validate(data | {"template": "plain", "compute": FP32} | changes)


def test_influence_is_a_column_and_a_rule(tiny_dir: Path, harvest: Context) -> None:
    wh = harvest.warehouse
    result = influence.run(config(tiny_dir), harvest)
    assert result.rows == 8
    rows = wh.sql("SELECT trace_id, problem_id, influence FROM annotated ORDER BY influence DESC")
    assert rows["influence"].is_between(-1, 1).all()
    alike = pl.col("trace_id").str.starts_with("alike")
    means = rows.select(
        pl.col("influence").filter(alike).mean().alias("alike"),
        pl.col("influence").filter(~alike).mean().alias("noise"),
    ).row(0)
    assert means[0] > means[1], "copies of the solutions help more than noise"
    by_target = wh.sql(
        "SELECT t.trace_id, h.problem_id, list_dot_product(t.sketch, h.sketch) AS influence "
        "FROM influences t JOIN influences h ON h.influence_id = t.influence_id "
        "WHERE t.trace_id IS NOT NULL AND h.trace_id IS NULL"
    )
    assert by_target.height == 8 * 4
    mean = by_target.group_by("trace_id").agg(pl.col("influence").mean())
    both = rows.join(mean, on="trace_id", suffix="_mean")
    assert both["influence"].to_list() == pytest.approx(both["influence_mean"].to_list(), abs=1e-5)
    best = rows.group_by("problem_id", maintain_order=True).first()
    for expected, chosen in (
        (rows["trace_id"][:4], {"select.top": {"k": 4, "by": "influence"}}),
        (best["trace_id"], {"select.per_problem": {"best": {"k": 1, "by": "influence"}}}),
    ):
        filtering.run(FILTER.model_copy(update={"set": chosen}), harvest)
        kept = wh.latest("corpora", "helpful").read().collect()["trace_id"]
        assert set(kept) == set(expected)
    assert influence.run(config(tiny_dir), harvest).rows == 0
    assert influence.run(config(tiny_dir, seed=1), harvest).rows == 8


def test_problems_without_solutions_are_no_targets(tiny_dir: Path, harvest: Context) -> None:
    rows = [{"problem_id": "x", "question": "q", "reference": "1", "split": "held-out"}]
    harvest.warehouse.write("problems", "bare", rows, key=1)
    with pytest.raises(UsageError, match="no problems with a worked solution"):
        influence.run(config(tiny_dir, problems="bare"), harvest)
    with pytest.raises(UsageError, match="no traces called 'nothing'"):
        influence.run(config(tiny_dir, traces=["nothing"]), harvest)
