"""Problems of generators: distinct, reproducible by seed, in the requested language, judged
correctly.
"""

import json
import os
import re
import subprocess
import sys

import pytest

from curate.errors import UsageError
from curate.problems import load_problems
from curate.problems.procedural import UNSTABLE, place_in_ranges

pytest.importorskip("reasoning_gym")

SUMS = {"source": "procedural", "dataset": "chain_sum"}
SHORT = {"min_terms": 3, "max_terms": 3, "min_digits": 1, "max_digits": 1}


def load(**config):
    return load_problems({"sources": [SUMS | config]})


def test_the_requested_number_of_distinct_problems_is_reproducible():
    frame, report = load(size=200, params=SHORT, seed=5)
    assert frame.height == report.loaded == 200
    assert frame["question"].n_unique() == 200
    assert frame.equals(load(size=200, params=SHORT, seed=5).frame)
    assert set(frame["problem_id"]) != set(
        load(size=200, params=SHORT, seed=10_000).frame["problem_id"]
    )
    more = load(size=300, params=SHORT, seed=5).frame
    assert more["problem_id"].head(200).equals(frame["problem_id"])


def test_a_small_generator_gives_all_its_problems():
    frame, _ = load(
        size=500, params={"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 1}
    )
    assert frame.height <= 200  # two digits and two signs
    assert frame["question"].n_unique() == frame.height


def test_rows_have_the_columns_of_verifier_and_trainer():
    frame, report = load(
        size=5, params={"min_terms": 3, "max_terms": 5, "min_digits": 1, "max_digits": 1}
    )
    assert report.without_verifier == 0
    for row in frame.iter_rows(named=True):
        metadata = json.loads(row["metadata"])
        assert metadata["dataset"] == "chain_sum"
        assert metadata["entry"]["answer"] == row["reference"]
        assert metadata["entry"]["question"].strip() == row["question"]
        assert eval(metadata["entry"]["metadata"]["expression"]) == int(row["reference"])
        assert row["solution"].endswith(f"{row['reference']}.")
        assert (row["source"], row["verifier"], row["domain"]) == (
            "procedural/chain_sum",
            "procedural",
            "math",
        )
        terms = metadata["entry"]["metadata"]["num_terms"]
        assert row["difficulty"] == pytest.approx((terms - 3) / 2)


def test_languages_take_turns_and_share_the_split():
    mixed, _ = load(size=40, params=SHORT, languages=["en", "zh"])
    assert mixed["target_language"].to_list() == ["en", "zh"] * 20
    english, _ = load(size=40, params=SHORT)
    # In Chinese it is another problem, but the same question: both are held out or neither is.
    assert mixed["split"].to_list() == english["split"].to_list()
    chinese = mixed.row(1, named=True)
    expression = json.loads(chinese["metadata"])["entry"]["metadata"]["expression"]
    assert chinese["question"] == f"计算 {expression} 的值。"
    assert chinese["solution"].startswith("逐步计算：")
    assert chinese["problem_id"] != english["problem_id"][1]


def test_without_a_chinese_template_the_question_is_part_of_a_request():
    frame, _ = load(dataset="letter_counting", size=2, languages=["zh"])
    question = json.loads(frame["metadata"][0])["entry"]["question"]
    assert frame["question"][0] == f"请用中文思考并解答下面的问题：\n{question.strip()}"
    assert frame["solution"].null_count() == 2


def every_generator(size: int) -> dict:
    from curate.verify.procedural import ALLOWED

    names = sorted(ALLOWED - UNSTABLE)
    sources = [
        {"source": "procedural", "dataset": name, "size": size, "languages": ["en", "zh"]}
        for name in names
    ]
    return {"sources": sources}


def test_every_allowed_generator_loads_in_both_languages():
    frame, _ = load_problems(every_generator(2))
    assert frame["source"].n_unique() == len(every_generator(2)["sources"])
    assert frame.filter(frame["target_language"] == "zh")["question"].str.contains(r"\p{Han}").all()


@pytest.mark.slow
def test_every_process_makes_the_same_problems():
    code = (
        "import json, sys; from curate.problems import load_problems;"
        "print('\\n'.join(load_problems(json.loads(sys.argv[1])).frame['problem_id']))"
    )
    entries = []
    for seed in ("1", "2"):
        command = [sys.executable, "-c", code, json.dumps(every_generator(40))]
        env = os.environ | {"PYTHONHASHSEED": seed}
        done = subprocess.run(
            command, env=env, capture_output=True, text=True, timeout=200, check=True
        )
        entries.append(
            [line for line in done.stdout.splitlines() if re.fullmatch(r"[0-9a-f]{32}", line)]
        )
    assert entries[0] == entries[1]
    assert len(entries[0]) > 1000


def test_the_reference_is_right_and_the_unsolved_question_is_wrong():
    from curate.problems import from_rows
    from curate.verify import VerifierPool

    frame, _ = load(size=4, params=SHORT)
    problems = from_rows(frame)
    expression = [json.loads(p.metadata)["entry"]["metadata"]["expression"] for p in problems]
    with VerifierPool(workers=1) as pool:
        right = pool.verify_batch(
            problems, [f"<think> . </think> <answer> {p.reference} </answer>" for p in problems]
        )
        echo = pool.verify_batch(
            problems, [f"<think> . </think> <answer> {e} </answer>" for e in expression]
        )
    assert {v.verdict for v in right} == {"correct"}
    assert {v.verdict for v in echo} == {"wrong"}


def test_solutions_can_be_left_out():
    assert load(size=3, solutions=False).frame["solution"].null_count() == 3


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"dataset": "coin_flip"}, "allow-list"),
        ({"dataset": "no_such"}, "allow-list"),
        ({"dataset": "isomorphic_strings"}, "every process"),
        ({"size": 0}, "size"),
        ({"languages": ["fr"]}, "languages"),
        ({"params": {"no_such": 1}}, "refuses its parameters"),
        ({"params": {"min_terms": 5, "max_terms": 2}}, "refuses its parameters"),
        ({"colour": "red"}, "colour"),
    ],
)
def test_a_wrong_config_is_refused_before_any_problem_is_made(config, message):
    with pytest.raises(UsageError, match=message):
        load(**config)


def test_place_in_ranges():
    assert place_in_ranges({"difficulty": {"a": (0, 10), "b": (1, 3)}, "a": 5, "b": 3}) == 0.75
    assert place_in_ranges({"difficulty": {"a": (3, 3)}, "a": 3}) is None
    assert place_in_ranges({"difficulty": 1.0}) is None
    assert place_in_ranges({}) is None
