"""Evaluation during training extracts and compares answers as everywhere else."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import pytest

from curate.records import Completion, Problem, Request
from curate.train.config import GRPOConfig
from curate.train.evals import Evaluator
from curate.verify import VerifierPool


class Script:
    """An engine that returns scripted completions, sample by sample."""

    name = "script"

    def __init__(self, texts: list[str]) -> None:
        self.texts = texts

    def generate(self, requests: Iterable[Request]) -> Iterator[Completion]:
        for request in requests:
            text = self.texts[int(request.request_id.split(":")[1])]
            yield Completion(request.request_id, text, "stop")


class Letters:
    """A tokenizer with one token per character."""

    bos_token = None

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        return [ord(letter) for letter in text]


@pytest.fixture(scope="module")
def pool() -> Iterator[VerifierPool]:
    with VerifierPool(workers=1) as verifiers:
        yield verifiers


def evaluated(
    pool: VerifierPool, problem: Problem, texts: list[str], form: str
) -> dict[str, float]:
    config = GRPOConfig.model_validate(
        {"model": "m", "evaluation": {"every": 1, "samples": len(texts)}}
    )
    prompt = lambda problem: problem.question + ("<think>\n" if form == "r1" else "")  # noqa: E731
    return Evaluator(config, Script(texts), pool, [problem], prompt, Letters(), form).run(0)


def test_an_answer_inside_reasoning_that_never_ended_does_not_count(pool: VerifierPool) -> None:
    problem = Problem("2 + 2 =", reference="4", verifier="math", problem_id="p")
    texts = [r"so \boxed{4} it seems", r"so 4. </think> The answer is \boxed{4}."]
    assert evaluated(pool, problem, texts, "r1")["eval_pass@1"] == 0.5


def test_wrong_answers_vote_together_if_they_are_equal(pool: VerifierPool) -> None:
    problem = Problem("?", reference="4", verifier="math", problem_id="p")
    answers = ["4", "4", "1/2", "0.5", r"\frac{1}{2}"]
    texts = [f"<think> . </think> <answer> {answer} </answer>" for answer in answers]
    metrics = evaluated(pool, problem, texts, "r1-zero")
    assert metrics["eval_pass@1"] == pytest.approx(0.4)
    assert metrics["eval_cons@5"] == 0.0


def test_choices_vote_by_what_they_choose(pool: VerifierPool) -> None:
    problem = Problem(
        "?", reference="A", choices=["cats", "dogs"], verifier="choice", problem_id="p"
    )
    texts = [
        f"<think> . </think> <answer> {answer} </answer>"
        for answer in ("A", "A", "B", "dogs", "(B) dogs")
    ]
    assert evaluated(pool, problem, texts, "r1-zero")["eval_cons@5"] == 0.0
