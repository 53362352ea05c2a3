"""Samples that an evaluation reads back: their answers are clustered by the problem's verifier."""

from __future__ import annotations

from pathlib import Path

import polars as pl

from curate.evaluate.job import _judged, _Sampled, _samples
from curate.job import Context, JobResult


def test_choices_are_clustered_by_what_they_choose(tmp_path: Path) -> None:
    problem = {
        "problem_id": "p",
        "question": "?",
        "verifier": "choice",
        "reference": "A",
        "choices": ["cats", "dogs"],
    }
    answers = ["B", "dogs", "A"]
    with Context(tmp_path) as context:
        warehouse = context.warehouse
        warehouse.write("problems", "p", [problem], key=1)
        shared = {
            "attempt": 0,
            "problem_id": "p",
            "recipe": "evaluate",
            "form": "plain",
            "finish_reason": "stop",
        }
        traces = [{"trace_id": f"t{i}", "sample_index": i, **shared} for i in range(3)]
        warehouse.write("traces", "family", traces, key=2)
        verdicts = [
            {"trace_id": f"t{i}", "attempt": 0, "kind": "rule", "verdict": v, "extracted": a}
            | {"verifier": "choice", "verifier_version": "2"}
            for i, (a, v) in enumerate(zip(answers, ["wrong", "wrong", "correct"], strict=True))
        ]
        warehouse.write("verdicts", "choice@2", verdicts, key=3)
        job = JobResult(facts={"family": "family"})
        sampled = _Sampled(job, pl.DataFrame({"problem_id": ["p"]}))
        frame = _samples(sampled, 3, _judged(["family"], context), context)
    clusters = frame.sort("sample_index")["cluster"].to_list()
    assert clusters[0] == clusters[1] != clusters[2]
    assert "choices" not in frame.columns
