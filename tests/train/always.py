"""A verifier that calls everything correct: workers import it by its name."""

from __future__ import annotations

from curate.records import Problem
from curate.verify.base import CORRECT, Judgement, Verifier
from curate.verify.extract import Extracted


class Always(Verifier):
    name = "always"

    def extract(self, problem: Problem, completion: str, delimiters: tuple[str, str]) -> Extracted:
        return Extracted(completion or "-")

    def quick(self, problem: Problem, answer: str) -> Judgement:
        return CORRECT
