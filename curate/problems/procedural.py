"""Problems from the generators of `reasoning_gym`; the same seed gives the same problems.

Only generators on the verifier's allow-list are used: some others accept nonsense, or do not
accept their own answer. A question is in English as the generator wrote it, or in Chinese by a
template.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any, Literal

import polars as pl
from pydantic import Field, field_validator

from curate.errors import UsageError
from curate.extras import need
from curate.problems.base import Source
from curate.problems.solutions import contradicted, worked_solution
from curate.verify.procedural import ALLOWED

# They draw from sets of strings or the global random generator, so every process would make
# different problems (0.1.25).
UNSTABLE = frozenset({"isomorphic_strings", "list_functions"})

# Questions in Chinese; the fields are those of the entry's metadata. For other generators, the
# question is put into a request.
_CHINESE = {
    "basic_arithmetic": "计算 {expression} 的值。",
    "chain_sum": "计算 {expression} 的值。",
    "decimal_chain_sum": "计算 {expression} 的值。",
    "gcd": "求这些数的最大公约数：{numbers}。",
    "lcm": "求这些数的最小公倍数：{numbers}。",
    "products": "计算 {expression} 的值。",
}
_CHINESE_REQUEST = "请用中文思考并解答下面的问题：\n{question}"


class Procedural(Source):
    """`size` distinct problems of one generator, each in one of `languages` (in turn)."""

    dataset: str = Field(description="name of the reasoning_gym generator")
    size: int = Field(
        100, ge=1, description="distinct problems; fewer if the generator has no more"
    )
    seed: int = Field(
        0, ge=0, description="problems of two seeds may overlap; ids and splits account for that"
    )
    params: dict[str, Any] = Field(
        default_factory=dict, description="the generator's own parameters"
    )
    languages: list[Literal["en", "zh"]] = Field(
        ["en"], min_length=1, description="languages of the questions, in turn"
    )
    solutions: bool = Field(True, description="add worked solutions if there is a solver")
    verifier: str = Field(
        "procedural",
        description="`math` would accept the expression of the question, given back unsolved",
    )
    domain: str = Field("math", description="value of the column `domain`")
    difficulty: float | None = Field(
        None, ge=0, le=1, description="default: the position within the parameters' ranges"
    )
    split: str | None = Field(None, description="split of all problems; null: drawn by hash")

    @field_validator("dataset")
    @classmethod
    def _allowed(cls, name: str) -> str:

        if name not in ALLOWED:
            raise ValueError(
                f"'{name}' is not on the allow-list of generators: "
                f"{', '.join(sorted(ALLOWED - UNSTABLE))}"
            )
        if name in UNSTABLE:
            raise ValueError(
                f"'{name}' makes different problems in every process, whatever the seed, so a "
                "job could not be resumed"
            )
        return name

    def expected(self) -> int | None:
        return self.size

    def load(self) -> pl.DataFrame:
        rows = [self._row(i, entry) for i, entry in enumerate(self._entries())]
        return pl.DataFrame(rows, schema=_SCHEMA)

    def _entries(self) -> Iterator[dict[str, Any]]:
        """Entries with distinct questions, without those whose reference is known to be wrong.

        A generator that repeats itself gives at most eight times as many entries as are needed.
        """
        need("the source 'procedural'", "quickstart", "reasoning_gym")
        import reasoning_gym

        try:
            entries = reasoning_gym.create_dataset(
                self.dataset, seed=self.seed, size=8 * self.size, **self.params
            )
        except (AssertionError, TypeError, ValueError) as error:
            raise UsageError(
                f"the generator '{self.dataset}' refuses its parameters: {error}"
            ) from error
        seen: set[str] = set()
        for i in range(8 * self.size):
            entry = entries[i]
            if entry["question"] in seen or contradicted(self.dataset, entry):
                continue
            seen.add(entry["question"])
            yield entry
            if len(seen) == self.size:
                return

    def _row(self, index: int, entry: dict[str, Any]) -> dict[str, Any]:
        language = self.languages[index % len(self.languages)]
        question, answer = entry["question"].strip(), str(entry["answer"])
        metadata = {
            "dataset": self.dataset,
            "entry": {k: entry[k] for k in ("question", "answer", "metadata")},
        }
        return {
            "source": f"procedural/{self.dataset}",
            "domain": self.domain,
            "question": question if language == "en" else _chinese(self.dataset, entry),
            "reference": answer,
            "solution": worked_solution(self.dataset, entry, language) if self.solutions else None,
            "verifier": self.verifier,
            "target_language": language,
            "difficulty": self.difficulty
            if self.difficulty is not None
            else place_in_ranges(entry["metadata"]),
            "split": self.split,
            "metadata": json.dumps(metadata, ensure_ascii=False, default=str),
            "identity": self.dataset,  # the rest of the entry follows from the question
            "same_as": question,  # in any language
        }


_SCHEMA = {
    name: pl.Float64 if name == "difficulty" else pl.String
    for name in (
        *(
            "source",
            "domain",
            "question",
            "reference",
            "solution",
            "verifier",
            "target_language",
            "difficulty",
            "split",
        ),
        *("metadata", "identity", "same_as"),
    )
}


def place_in_ranges(metadata: Mapping[str, Any]) -> float | None:
    """Position of an entry within the generator's ranges, 0 to 1: the mean over the parameters
    that vary.

    `reasoning_gym` reports `difficulty: {num_terms: (3, 6)}` next to `num_terms: 4`, which gives
    1/3. None if nothing varies. Comparable within one source and config only.
    """
    ranges = metadata.get("difficulty")
    if not isinstance(ranges, Mapping):
        return None
    places = []
    for name, limits in ranges.items():
        value = metadata.get(name)
        if isinstance(limits, tuple | list) and len(limits) == 2 and isinstance(value, int | float):
            low, high = limits
            if (
                isinstance(low, int | float)
                and isinstance(high, int | float)
                and low <= value <= high
                and low < high
            ):
                places.append((value - low) / (high - low))
    return sum(places) / len(places) if places else None


def _chinese(dataset: str, entry: Mapping[str, Any]) -> str:
    metadata = dict(entry["metadata"])
    if dataset not in _CHINESE:
        return _CHINESE_REQUEST.format(question=entry["question"].strip())
    if "numbers" in metadata:
        metadata["numbers"] = "、".join(str(n) for n in metadata["numbers"])
    return _CHINESE[dataset].format(**metadata)
