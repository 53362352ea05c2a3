"""Duplicates and contamination: what was planted is found, what was not is left."""

from __future__ import annotations

import random

import polars as pl
import pytest

from curate.errors import UsageError
from curate.filter.contamination import benchmark_of, contaminated, read_benchmark
from curate.filter.duplicates import duplicate_of
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
HAN = "的一是在不了有和人这中大为上个国我以要他时来用们生到作地于出就分对成会可主发年动同工也能下过子说产种面而方后"


def sentence(rng: random.Random, length: int = 60) -> list[str]:
    return [rng.choice(STEMS) + str(rng.randint(0, 200)) for _ in range(length)]


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
    found = duplicate_of(texts, pl.Series([0.1, 0.9, 0.5, 0.2, 0.0, 0.0]))
    assert found["original"].to_list() == [1, 1, 2, 1, 4, 5]
    assert found["kind"].to_list() == ["exact", None, None, "exact", None, None]
    assert duplicate_of(texts)["original"].to_list() == [0, 0, 2, 0, 4, 5]


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
    found = duplicate_of(texts, threshold=0.7)
    pairs = found["original"].to_list()[150:]
    assert sum(original == i for i, original in enumerate(pairs)) >= 148
    assert found["original"].to_list()[:150] == list(range(150))
    assert duplicate_of(texts, near=False)["kind"].is_null().all()


def test_a_group_is_one_however_long_its_chain() -> None:
    rng = random.Random(5)
    words, texts = sentence(rng, 80), []
    for step in range(12):
        words = [*words[:step], f"new{step}", *words[step + 1 :]]
        texts.append(" ".join(words))
    assert set(duplicate_of(pl.Series(texts))["original"].to_list()) == {0}


QUESTION = "A train leaves the station at nine and travels for three hours at sixty miles an hour, how far does it go?"


@pytest.mark.parametrize("n", [8, 10, 13])
def test_planted_benchmarks_are_found_with_the_overlap(n: int) -> None:
    rng = random.Random(n)
    items = [" ".join(sentence(rng, 25)) for _ in range(100)] + [QUESTION]
    clean = [" ".join(sentence(rng, 60)) for _ in range(200)]
    planted = [f"Please solve: {item.upper()}! Thank you." for item in items]
    found = contaminated(pl.Series(clean + planted), benchmark_of(pl.Series(items), n))
    assert found["at"].to_list() == list(range(200, 301))
    assert found["overlap"].to_list()[-1] == pl.select(folded(pl.lit(QUESTION))).item()
    partial = contaminated(
        pl.Series(["so " + " ".join(QUESTION.split()[3 : 3 + n])]),
        benchmark_of(pl.Series(items), n),
    )
    assert partial["tokens"].to_list() == [n]
    assert contaminated(
        pl.Series([" ".join(QUESTION.split()[: n - 1])]), benchmark_of(pl.Series(items), n)
    ).is_empty()


def test_short_items_and_chinese() -> None:
    items = pl.Series(
        [
            "What is six times seven?",
            "Yes or no?",
            "小明有十二个苹果，他给了妹妹五个，又买了三个，现在有几个？",
        ]
    )
    benchmark = benchmark_of(items, 10)
    asked = pl.Series(
        [
            "Tell me, what is six times seven",
            "Answer yes or no?",
            "题目：小明有十二个苹果，他给了妹妹五个，又买了三个。",
            "小明有十二个梨",
        ]
    )
    assert contaminated(asked, benchmark)["at"].to_list() == [0, 2]


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
