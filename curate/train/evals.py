"""pass@1, pass@k and cons@k on held-out problems during training, by the estimators of evaluate."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl

from curate.engines.base import encode
from curate.evaluate.stats import cons_at_k, pass_at_1, pass_at_k
from curate.progress import waiting
from curate.prompts.forms import with_opener_expr
from curate.records import Problem, Request, Sampling
from curate.train.config import GRPOConfig
from curate.verify.consensus import cluster_ids
from curate.warehouse.identity import request_seed


@dataclass
class Evaluator:
    """Samples held-out problems with the engine's current weights."""

    config: GRPOConfig
    engine: Any
    pool: Any
    problems: Sequence[Problem]
    prompt: Callable[[Problem], str]
    tokenizer: Any
    form: str

    def run(self, step: int) -> dict[str, float]:
        """Return `eval_pass@1`, `eval_pass@k`, `eval_cons@k` and `eval_truncated`.

        All are means over problems, with k = `evaluation.samples`.
        """
        options, own = self.config.evaluation, self.config.sampling
        sampling = Sampling(
            options.temperature, options.top_p, 0, own.max_tokens, tuple(own.stop), logprobs=False
        )
        prompts = [self.prompt(p) for p in self.problems]
        ids = [encode(self.tokenizer, p) for p in prompts]
        # Seeds do not depend on the step: evaluations differ only in the weights.
        requests = (
            Request(
                f"{i}:{s}",
                prompts[i],
                request_seed(self.config.seed, f"eval:{p.problem_id}", s),
                sampling,
                ids[i],
            )
            for i, p in enumerate(self.problems)
            for s in range(options.samples)
        )
        with waiting(f"evaluating on {len(prompts)} held-out problems"):
            completions = sorted(
                self.engine.generate(requests),
                key=lambda c: tuple(map(int, c.request_id.split(":"))),
            )
        index = [int(c.request_id.split(":")[0]) for c in completions]
        row_problems = [self.problems[i] for i in index]
        frame = pl.DataFrame(
            {
                "problem_id": [p.problem_id for p in row_problems],
                "prompt": [prompts[i] for i in index],
                "completion": [c.text for c in completions],
                "verifier": [p.verifier for p in row_problems],
                "choices": [p.choices for p in row_problems],
                "metadata": [p.metadata for p in row_problems],
            },
            schema_overrides={
                "verifier": pl.String,
                "choices": pl.List(pl.String),
                "metadata": pl.String,
            },
        )
        text = with_opener_expr(pl.col("completion"), pl.col("prompt"), pl.lit(self.form))
        texts = frame.select(text).to_series().to_list()
        verdicts = self.pool.verify_batch(row_problems, texts, forms=[self.form] * len(completions))
        correct = np.array([v.verdict == "correct" for v in verdicts])
        judged = np.array([v.verdict != "unverifiable" for v in verdicts])
        problem, size = np.array(index), len(self.problems)
        samples, right = (
            np.bincount(problem, weights=w, minlength=size) for w in (judged, correct & judged)
        )
        frame = frame.with_columns(
            pl.Series("extracted", [v.extracted for v in verdicts], dtype=pl.String)
        )
        votes = cluster_ids(frame, pool=self.pool)
        clusters = np.array([-1 if cluster is None else cluster for cluster in votes])
        return {
            "eval_pass@1": float(np.nanmean(pass_at_1(samples, right))),
            f"eval_pass@{options.samples}": float(
                np.nanmean(pass_at_k(samples, right, options.samples))
            ),
            f"eval_cons@{options.samples}": float(
                np.nanmean(cons_at_k(problem, clusters, correct.astype(float), size))
            ),
            "eval_truncated": float(np.mean([c.finish_reason == "length" for c in completions])),
        }
