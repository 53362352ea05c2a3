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
from curate.records import Completion, Problem, Request, Sampling, Verdict
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
        completions = self._complete()
        index = [int(c.request_id.split(":")[0]) for c in completions]
        verdicts, clusters = self._judge(index, [c.text for c in completions])
        correct = np.array([v.verdict == "correct" for v in verdicts])
        judged = np.array([v.verdict != "unverifiable" for v in verdicts])
        problem, size, k = np.array(index), len(self.problems), self.config.evaluation.samples
        samples, right = (
            np.bincount(problem, weights=w, minlength=size) for w in (judged, correct & judged)
        )
        votes = cons_at_k(problem, clusters, correct.astype(float), size)
        return {
            "eval_pass@1": float(np.nanmean(pass_at_1(samples, right))),
            f"eval_pass@{k}": float(np.nanmean(pass_at_k(samples, right, k))),
            f"eval_cons@{k}": float(np.nanmean(votes)),
            "eval_truncated": float(np.mean([c.finish_reason == "length" for c in completions])),
        }

    def _complete(self) -> list[Completion]:
        """Sample each problem k times; by problem, then sample (`<problem>:<sample>`)."""
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
            return sorted(
                self.engine.generate(requests),
                key=lambda c: tuple(map(int, c.request_id.split(":"))),
            )

    def _judge(
        self, index: Sequence[int], completions: Sequence[str]
    ) -> tuple[list[Verdict], np.ndarray]:
        """Return the verdict and the cluster of each completion's answer (-1 without an answer).

        `index` are the problems of the completions.
        """
        problems = [self.problems[i] for i in index]
        frame = pl.DataFrame(
            {
                "problem_id": [p.problem_id for p in problems],
                "prompt": [self.prompt(p) for p in problems],
                "completion": completions,
                "verifier": [p.verifier for p in problems],
                "choices": [p.choices for p in problems],
                "metadata": [p.metadata for p in problems],
            },
            schema_overrides={
                "verifier": pl.String,
                "choices": pl.List(pl.String),
                "metadata": pl.String,
            },
        )
        text = with_opener_expr(pl.col("completion"), pl.col("prompt"), pl.lit(self.form))
        texts = frame.select(text).to_series().to_list()
        verdicts = self.pool.verify_batch(problems, texts, forms=[self.form] * len(completions))
        frame = frame.with_columns(
            pl.Series("extracted", [v.extracted for v in verdicts], dtype=pl.String)
        )
        clusters = cluster_ids(frame, pool=self.pool)
        return verdicts, np.array([-1 if cluster is None else cluster for cluster in clusters])
