"""The preference reward: a judge compares the completions of open questions, which no rule can
judge.

    rewards:
      accuracy: 1.0
      preference: {weight: 1.0, options: {model: Qwen/Qwen2.5-32B-Instruct}}

The completions of one question are arranged in a ring, and each is compared with its neighbours,
once as the first and once as the second of the two, so that a judge's bias towards a position
cancels. A completion's value is its share of the points: 1 for a comparison won, 1/2 for a tie. The
judge sees the question and the two answers, never the reasoning (the R1 report, 2.3.4: for
helpfulness the final summary alone). An answer that addresses the judge is not shown to it and
loses, like one that was cut off or is empty. The report's helpfulness model was trained on pairs;
ring, points and rubric are ours.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import polars as pl

from curate.config import validate
from curate.engines import EngineConfig, model_for, open_engine
from curate.errors import CurateError, UsageError
from curate.records import Request
from curate.verify.models.judge import (
    MAX_ANSWER,
    MAX_QUESTION,
    Judge,
    Rubric,
    addresses_judge,
    message,
    shortened,
)

OPEN = ("none", "open")  # verifier names that mean: none
MAX_SHOWN = 2 * MAX_ANSWER  # characters of each answer; an answer to an open question may be long

RUBRIC = Rubric(
    "preference",
    "Decide which of two answers, the FIRST or the SECOND, helps the person who asked the "
    "QUESTION more.\n"
    "Helpful: it addresses what was asked, is correct as far as you can tell, is complete and "
    "clear, and is in the language of the question. Ignore length, politeness, confidence and the "
    "order of the two answers.\n"
    "FIRST: the first helps more. SECOND: the second helps more. TIE: neither helps more, or it "
    "cannot be determined.",
    ("FIRST", "SECOND", "TIE"),
    ("question", "first", "second"),
)
POINTS = {"FIRST": 1.0, "SECOND": 0.0, "TIE": 0.5}  # of the answer that is shown first


def is_open(verifier: pl.Expr) -> pl.Expr:
    """Whether a problem is an open question: it has no verifier."""
    return verifier.is_null() | verifier.is_in(list(OPEN))


class Preference:
    """Compares answers with one engine; `model` names the judge, `render` turns the message into
    the engine's prompt.
    """

    def __init__(
        self,
        engine: Any,
        model: str,
        render: Callable[[str], str] = str,
        max_tokens: int = 1024,
        opponents: int = 1,
        seed: int = 0,
    ) -> None:
        if opponents < 1:
            raise UsageError(
                f"preference: opponents is {opponents}; each answer needs at least 1 on each side"
            )
        self.judge = Judge(engine, model, RUBRIC, render, max_tokens, seed)
        self.opponents = opponents

    def values(
        self, groups: Sequence[tuple[str, Sequence[str | None]]]
    ) -> list[list[float | None]]:
        """Return for each (question, answers) one value in [0, 1] per answer; None if no reply was
        readable.

        An answer of None (cut off or missing) loses. Raises CurateError if the judge answered
        nothing at all.
        """
        points: dict[tuple[int, int], list[float]] = {
            (g, i): [] for g, (_, answers) in enumerate(groups) for i in range(len(answers))
        }
        pairs: dict[str, tuple[int, int, int]] = {}
        requests: list[Request] = []
        for g, (question, answers) in enumerate(groups):
            shown = [answer is not None and not addresses_judge(answer) for answer in answers]
            for first, second in both_ways(len(answers), self.opponents):
                if not (shown[first] and shown[second]):
                    points[g, first].append(float(shown[first]))
                    points[g, second].append(float(shown[second]))
                elif answers[first] == answers[second]:
                    points[g, first].append(0.5)
                    points[g, second].append(0.5)
                else:
                    key = f"{g}:{first}:{second}"
                    pairs[key] = g, first, second
                    requests.append(
                        self._request(key, len(requests), question, answers[first], answers[second])
                    )
        failures: list[str] = []
        for completion in self.judge.engine.generate(iter(requests)):
            _, word = self.judge.read(completion)
            g, first, second = pairs[completion.request_id]
            if word in POINTS:
                points[g, first].append(POINTS[word])
                points[g, second].append(1 - POINTS[word])
            elif completion.finish_reason == "error":
                failures.append(str(completion.error))
        if requests and len(failures) == len(requests):
            raise CurateError(
                f"the judge of the reward 'preference' replied to none of {len(requests)} "
                f"requests ({failures[0]}): "
                "see that its model or server works, and run the same command again; it resumes "
                "where it stopped"
            )
        return [
            [
                sum(points[g, i]) / len(points[g, i]) if points[g, i] else None
                for i in range(len(answers))
            ]
            for g, (_, answers) in enumerate(groups)
        ]

    def _request(
        self, key: str, number: int, question: str, first: str | None, second: str | None
    ) -> Request:
        parts = {
            "question": shortened(question, MAX_QUESTION),
            "first": shortened(first or "", MAX_SHOWN),
            "second": shortened(second or "", MAX_SHOWN),
        }
        text = message(RUBRIC, parts, f"{self.judge.name}\0{key}")
        return Request(key, self.judge.render(text), self.judge.seed + number, self.judge.sampling)


def both_ways(count: int, opponents: int) -> Iterator[tuple[int, int]]:
    """Yield pairs of neighbours in a ring of `count`, up to `opponents` apart, in both orders, each
    pair once.
    """
    pairs = {frozenset((i, (i + d) % count)) for d in range(1, opponents + 1) for i in range(count)}
    for pair in sorted(sorted(p) for p in pairs if len(p) == 2):
        yield pair[0], pair[1]
        yield pair[1], pair[0]


# -- as a reward


class JudgeEngines:
    """Engines of judges, opened at first use and closed together; use it in `with`."""

    def __init__(self) -> None:
        self._open: dict[str, tuple[Any, str]] = {}

    def engine(self, model: str, settings: Mapping[str, Any]) -> tuple[Any, str]:
        """Return the engine of a judge, and the start of the hash of its weights."""
        key = json.dumps([model, dict(settings)], sort_keys=True, default=str)
        if key not in self._open:
            config = validate(EngineConfig, settings, "rewards: preference: engine")
            resolved = model_for(config, model)
            self._open[key] = open_engine(config, resolved.path), resolved.hash[:12]
        return self._open[key]

    def close(self) -> None:
        while self._open:
            self._open.popitem()[1][0].close()

    def __enter__(self) -> JudgeEngines:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def preference(
    frame: pl.DataFrame,
    model: str,
    engine: Mapping[str, Any] | None = None,
    chat: bool = True,
    max_tokens: int = 1024,
    opponents: int = 1,
    judges: JudgeEngines | None = None,
) -> pl.Series:
    """Return each trace's share of points against others of its problem; null if a rule judges the
    problem.

    `frame` has `problem_id, question, verifier, answer, finish_reason`. `model` is any name that
    engines know, `engine` an engine's config; `chat: false` sends the message without the model's
    chat template. `judges` keeps the judge's engine open between calls; without it the engine is
    closed when this call ends.
    """
    if judges is None:
        with JudgeEngines() as own:
            return preference(frame, model, engine, chat, max_tokens, opponents, own)
    rows = frame.with_row_index("row").filter(is_open(pl.col("verifier")))
    values: list[float | None] = [None] * frame.height
    if rows.is_empty():
        return pl.Series(values, dtype=pl.Float64)
    complete = (pl.col("finish_reason") == "stop").fill_null(False) & (
        pl.col("answer").str.strip_chars() != ""
    )
    rows = rows.with_columns(shown=pl.when(complete).then("answer"))
    groups = rows.group_by("problem_id", maintain_order=True).agg(
        pl.col("question").first(), "shown", "row"
    )
    opened, name = judges.engine(model, engine or {})

    def render(text: str) -> str:
        return str(opened.render_chat([{"role": "user", "content": text}])) if chat else text

    shares = Preference(opened, name, render, max_tokens, opponents).values(
        list(zip(groups["question"].to_list(), groups["shown"].to_list(), strict=True))
    )
    for places, values_of in zip(groups["row"].to_list(), shares, strict=True):
        for place, share in zip(places, values_of, strict=True):
            values[place] = share
    return pl.Series(values, dtype=pl.Float64)
