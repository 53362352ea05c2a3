"""Duplicates and contamination: planted copies are detected, other texts are kept."""

from __future__ import annotations

import random
import re

import polars as pl
import pytest

from curate.errors import UsageError
from curate.filter.contamination import benchmark_of, contaminated, read_benchmark
from curate.filter.duplicates import duplicates, signatures
from curate.filter.shingles import folded

STEMS = (
    "river",
    "stone",
    "window",
    "letter",
    "garden",
    "winter",
    "coffee",
    "travel",
    "number",
    "circle",
    "silver",
)
HAN = (
    "的一是在不了有和人这中大为上个国我以要他时来用们生到作地于出就分对"
    "成会可主发年动同工也能下过子说产种面而方后"
)


def sentence(rng: random.Random, length: int = 60) -> list[str]:
    return [rng.choice(STEMS) + str(rng.randint(0, 200)) for _ in range(length)]


def duplicate_of(
    texts: pl.Series,
    score: pl.Series | None = None,
    near: bool = True,
    threshold: float = 0.8,
    facts: bool = False,
) -> pl.DataFrame:
    """Return the duplicates among texts in memory."""
    return duplicates(signatures(texts, near, facts), texts.gather, score, threshold)


def test_folding() -> None:
    texts = pl.Series(["Hello,  WORLD!", "ｈｅｌｌｏ world", "今天，天气。", None])
    assert pl.select(folded(texts)).to_series().to_list() == [
        "hello world",
        "hello world",
        "今 天 天 气",
        None,
    ]


def test_exact_duplicates_keep_the_best() -> None:
    texts = pl.Series(["3 + 4 = 7.", "3 + 4 = 7", "3 + 5 = 8", "  3 + 4 = 7!", "", ""])
    matches = duplicate_of(texts, pl.Series([0.1, 0.9, 0.5, 0.2, 0.0, 0.0]))
    assert matches["original"].to_list() == [1, 1, 2, 1, 4, 5]
    assert matches["kind"].to_list() == ["exact", None, None, "exact", None, None]
    assert duplicate_of(texts)["original"].to_list() == [0, 0, 2, 0, 4, 5]


@pytest.mark.parametrize(
    "problems",
    [
        ["What is 3 + 4?", "What is 3 - 4?", "What is 3 * 4?", "What is 4 + 3?", "What is 3/4?"],
        ["x + 3 > 5", "x + 3 < 5", "x + 3 = 5", "x + 3 ≤ 5"],
        ["\\arcsin 1", "\\arcsin (-1)", "\\arcsin 0.1"],
        ["计算 3+4", "计算 3-4", "计算 3×4"],
        ["Compute 5!.", "Compute 5.", "Compute 5!!."],
        ["f'(0) = 1", "f(0) = 1"],
        ["x in [0,1)", "x in (0,1]"],
        ["(2 + 3) * 4", "2 + (3 * 4)"],
    ],
)
def test_signs_digits_and_order_distinguish_problems(problems: list[str]) -> None:
    assert duplicate_of(pl.Series(problems), facts=True)["kind"].is_null().all()


def test_the_same_problem_in_other_typography_is_one() -> None:
    texts = pl.Series(["Solve  x − 3 = 5!", "solve x - 3 = 5.", "**Solve** x － 3 ＝ 5"])
    assert duplicate_of(texts, facts=True)["original"].to_list() == [0, 0, 0]


def test_problems_of_one_pattern_are_merged_only_on_request() -> None:
    pattern = (
        "A shop sells {} red pens and {} blue pens every day of the week, and each of the pens "
        "that the shop sells costs exactly {} dollars. How much money does the shop take in during "
        "one whole week?"
    )
    rng = random.Random(1)
    texts = [pattern.format(*(rng.randint(2, 99) for _ in range(3))) for _ in range(40)]
    reworded = [
        text.replace("shop takes in", "store earns").replace("whole ", "") for text in texts
    ]
    apart = duplicate_of(pl.Series(texts + reworded), threshold=0.7, facts=True)[
        "original"
    ].to_list()
    assert apart == [*range(40), *range(40)]
    assert len(set(duplicate_of(pl.Series(texts), threshold=0.6)["original"].to_list())) < 40


def test_short_texts_are_not_all_alike() -> None:
    texts = pl.Series([f"{i} + {i + 1} = {2 * i + 1}" for i in range(50)])
    assert duplicate_of(texts)["kind"].is_null().all()


@pytest.mark.parametrize("script", ["latin", "han"])
def test_near_duplicates_are_found(script: str) -> None:
    rng = random.Random(3)
    originals = [sentence(rng) if script == "latin" else rng.choices(HAN, k=80) for _ in range(150)]
    edited = []
    for words in originals:
        copy = list(words)
        for place in rng.sample(range(len(copy)), 2):
            copy[place] = "edited" if script == "latin" else "鑫"
        edited.append(copy)
    glue = " " if script == "latin" else ""
    texts = pl.Series([glue.join(words) for words in originals + edited])
    matches = duplicate_of(texts, threshold=0.7)
    pairs = matches["original"].to_list()[150:]
    assert sum(original == i for i, original in enumerate(pairs)) >= 148
    assert matches["original"].to_list()[:150] == list(range(150))
    assert duplicate_of(texts, near=False)["kind"].is_null().all()


def test_a_group_is_one_however_long_its_chain() -> None:
    rng = random.Random(5)
    words, texts = sentence(rng, 80), []
    for step in range(12):
        words = [*words[:step], f"new{step}", *words[step + 1 :]]
        texts.append(" ".join(words))
    assert set(duplicate_of(pl.Series(texts))["original"].to_list()) == {0}


QUESTION = (
    "A train leaves the station at nine and travels for three hours at sixty miles an hour, "
    "how far does it go?"
)


@pytest.mark.parametrize("n", [8, 10, 13])
def test_planted_benchmarks_are_found_with_the_overlap(n: int) -> None:
    rng = random.Random(n)
    items = [" ".join(sentence(rng, 25)) for _ in range(100)] + [QUESTION]
    clean = [" ".join(sentence(rng, 60)) for _ in range(200)]
    planted = [f"Please solve: {item.upper()}! Thank you." for item in items]
    hits = contaminated(pl.Series(clean + planted), benchmark_of(pl.Series(items), n))
    assert hits["at"].to_list() == list(range(200, 301))
    assert hits["overlap"].to_list()[-1] == pl.select(folded(pl.lit(QUESTION))).item()
    partial = contaminated(
        pl.Series(["so " + " ".join(QUESTION.split()[3 : 3 + n])]),
        benchmark_of(pl.Series(items), n),
    )
    assert partial["tokens"].to_list() == [n]
    assert contaminated(
        pl.Series([" ".join(QUESTION.split()[: n - 1])]), benchmark_of(pl.Series(items), n)
    ).is_empty()


BOILERPLATE = "where $m$ and $n$ are relatively prime positive integers. Find $m+n$."


def aime_like(rng: random.Random) -> str:
    """Return a competition problem with random content in the usual phrases."""
    words = " ".join(sentence(rng, 25))
    return f"Let ${rng.randint(2, 99)}$ {words} ${rng.randint(2, 999)}$, {BOILERPLATE}"


@pytest.mark.parametrize(("texts", "items"), [(200, 30), (20, 5), (1, 1)])
def test_boilerplate_alone_is_not_contamination(texts: int, items: int) -> None:
    rng = random.Random(1)
    benchmark = benchmark_of(pl.Series([aime_like(rng) for _ in range(items)]))
    problems = pl.Series([aime_like(rng) for _ in range(texts)])
    assert contaminated(problems, benchmark).is_empty()


def test_light_paraphrases_are_found_if_the_numbers_stay() -> None:
    rng = random.Random(2)
    items = [aime_like(rng) for _ in range(40)]
    reworded = []
    for item in items:
        words = item.split(" ")
        for place in rng.sample(range(3, 25), 5):
            words[place] = f"reworded{place}"
        reworded.append(" ".join(words))
    hits = contaminated(pl.Series(reworded), benchmark_of(pl.Series(items)))
    assert hits["at"].to_list() == hits["item"].to_list() == list(range(40))
    renumbered = pl.Series([re.sub(r"\$\d+", "$1234", item) for item in items])
    assert contaminated(renumbered, benchmark_of(pl.Series(items))).is_empty()


def test_short_items_and_chinese() -> None:
    items = pl.Series(
        [
            "What is six times seven?",
            "Yes or no?",
            "小明有十二个苹果，他给了妹妹五个，又买了三个，现在有几个？",
        ]
    )
    benchmark = benchmark_of(items, 10)
    questions = pl.Series(
        [
            "Tell me, what is six times seven",
            "Answer yes or no?",
            "题目：小明有十二个苹果，他给了妹妹五个，又买了三个。",
            "小明有十二个梨",
        ]
    )
    assert contaminated(questions, benchmark)["at"].to_list() == [0, 2]


def test_benchmark_files(tmp_path: object) -> None:
    from pathlib import Path

    folder = Path(str(tmp_path))
    (folder / "a.jsonl").write_text(
        '{"problem": "one two three four five six seven eight nine ten eleven"}\n'
    )
    (folder / "b.txt").write_text(
        "alpha beta gamma delta epsilon zeta eta theta iota kappa lambda\n"
    )
    benchmark = read_benchmark([folder / "a.jsonl", folder / "b.txt"], n=8)
    assert benchmark.items == 2
    assert (
        contaminated(
            pl.Series(["x beta gamma delta epsilon zeta eta theta iota y"]), benchmark
        ).height
        == 1
    )
    (folder / "c.jsonl").write_text('{"number": 3}\n')
    with pytest.raises(UsageError, match="no column of text"):
        read_benchmark([folder / "c.jsonl"])
