"""Every allowed generator accepts its own answer and no constant one."""

from __future__ import annotations

import json

import pytest

from curate.records import Problem
from curate.verify import VerifierPool
from curate.verify.procedural import ALLOWED, INTEGER, SCORED

pytest.importorskip("reasoning_gym")

CONSTANT = [
    "0", "1", "-1", "2", "10", "nan", "inf", "true", "false", "True", "False", "yes", "no", "a",
    "A", "x", "None", "[]", "{}", "[[]]", "[0]", "null",
    "the answer", "0.0", "0/1", "1e9", "0 0", "+", "left", "valid", "\x00", "(1,2)", "0x0",
    "{\"a\": 1}", "0+0j", "undetermined", "impossible",
    "__import__('os')._exit(0)",
]  # fmt: skip


def problems(dataset: str, size: int = 6) -> list[tuple[Problem, str]]:
    import reasoning_gym

    rows = []
    for entry in reasoning_gym.create_dataset(dataset, size=size, seed=7):
        kept = {key: entry[key] for key in ("question", "answer", "metadata")}
        metadata = json.dumps({"dataset": dataset, "entry": kept}, default=str)
        rows.append(
            (
                Problem(entry["question"], entry["answer"], "procedural", metadata=metadata),
                entry["answer"],
            )
        )
    return rows


@pytest.mark.parametrize("dataset", sorted(ALLOWED))
def test_its_own_answer_is_right_and_constant_answers_are_not(
    pool: VerifierPool, dataset: str
) -> None:
    generated = problems(dataset)
    own = pool.judge_answers(
        [problem for problem, _ in generated], [answer for _, answer in generated]
    )
    assert {v.verdict for v in own} == {"correct"}
    pairs = [
        (problem, text)
        for problem, answer in generated
        for text in CONSTANT
        if text.lower() != answer.lower()
    ]
    verdicts = pool.judge_answers([problem for problem, _ in pairs], [text for _, text in pairs])
    fooled = [
        (pairs[i][0].reference, pairs[i][1], v.detail)
        for i, v in enumerate(verdicts)
        if v.verdict != "wrong"
    ]
    # 0.0 is the integer 0, and 10 may be an answer in another notation of the same number.
    fooled = [
        f for f in fooled if not (f[0] in ("0", "0/1") and f[1] in ("0", "0.0", "0x0", "0/1"))
    ]
    assert fooled == []


def test_containing_the_answer_is_not_enough(pool: VerifierPool) -> None:
    problem, answer = problems("letter_jumble", 1)[0]
    assert pool.judge_answers([problem], [f"{answer} or something else"])[0].verdict == "wrong"
    problem, answer = problems("chain_sum", 1)[0]
    verdicts = pool.verify_batch(
        [problem] * 4,
        [
            f"<answer>{text}</answer>"
            for text in (answer, f"{answer}.0", f"{answer} {answer}", f"{int(answer) * 2}/2")
        ],
    )
    assert [v.verdict for v in verdicts] == ["correct", "correct", "wrong", "wrong"]


def test_generators_that_reward_anything_or_run_answers_as_code_are_not_allowed() -> None:
    exploitable = {
        "game_of_life_halting",
        "coin_flip",
        "complex_arithmetic",
        "boxnet",
        "graph_color",
        "propositional_logic",
        "rubiks_cube",
        "rush_hour",
    }
    evaluating = {
        "countdown",
        "puzzle24",
        "simple_integration",
        "intermediate_integration",
        "polynomial_multiplication",
        "string_insertion",
        "spiral_matrix",
        "binary_matrix",
        "n_queens",
        "codeio",
    }
    assert not (exploitable | evaluating) & ALLOWED
    assert not INTEGER & SCORED


@pytest.mark.parametrize(
    "metadata",
    [None, "", "{", "[]", "{}", '{"dataset": "chain_sum"}',
     '{"dataset": "chain_sum", "entry": {"answer": 3}}',
     '{"dataset": "coin_flip", "entry": {"answer": "0.5"}}',
     '{"dataset": "os", "entry": {"answer": "1"}}'],
)  # fmt: skip
def test_what_cannot_be_judged_is_unverifiable(pool: VerifierPool, metadata: str | None) -> None:
    verdict = pool.verify(Problem("?", "3", "procedural", metadata=metadata), "<answer>3</answer>")
    assert verdict.verdict == "unverifiable"
    assert verdict.detail
