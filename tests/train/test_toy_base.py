"""The small base of the findings: its tokens, its texts, and the refusal of a base that cannot
add."""

import random

import pytest

from curate.engines.testing.tiny import char_tokenizer
from curate.errors import UsageError
from curate.job import Context
from curate.problems.store import STAGE as PROBLEMS
from curate.train.toy_base import PHRASES, BaseConfig, faulty_text, run, words

QUESTION = "Compute: 4 - 7 + 2 ="


def config(**values) -> BaseConfig:
    return BaseConfig.model_validate({"problems": "sums", **values})


def test_whole_phrases_quarter_the_tokens_and_decode_to_the_same_text():
    letters = "".join("".join(phrases) for phrases in PHRASES.values())
    plain, whole = (char_tokenizer(letters + QUESTION + "<>/0123456789.") for _ in range(2))
    whole.add_tokens(words())
    lengths = []
    for seed in range(50):
        _, text = faulty_text(QUESTION, "en", config(), random.Random(seed))
        few = whole.encode(text, add_special_tokens=False)
        assert whole.decode(few) == plain.decode(plain.encode(text, add_special_tokens=False))
        lengths.append(len(few) / len(text))
    assert sum(lengths) / len(lengths) < 0.4


def test_texts_without_faults_are_right_sums_in_their_form():
    right = config(wrong=0, checks=0, untagged=0, mixed=0)
    question, text = faulty_text(QUESTION, "en", right, random.Random(0))
    assert question == QUESTION
    assert text == (
        " <think> Step by step: 4 - 7 = -3, then -3 + 2 = -1. So the result is -1. </think> "
        "<answer> -1 </answer>"
    )


def test_a_check_makes_a_wrong_step_right():
    checked = config(wrong=1, checks=1, untagged=0, mixed=0)
    _, text = faulty_text(QUESTION, "en", checked, random.Random(0))
    assert text.count("wait, let me check") == 2
    assert text.endswith("<answer> -1 </answer>")


@pytest.mark.slow
def test_a_base_that_cannot_add_is_refused_and_not_trained_again(tmp_path):
    pytest.importorskip("reasoning_gym")
    sums = {"min_terms": 3, "max_terms": 3, "min_digits": 1, "max_digits": 1}
    source = {"source": "procedural", "dataset": "chain_sum", "size": 40, "params": sums}
    problems = {"name": "sums", "sources": [source], "held_out": 10}
    ignorant = {"hidden": 32, "layers": 1, "heads": 1, "steps": 2, "batch_size": 4}
    with Context(tmp_path / "warehouse") as context:
        PROBLEMS.run(PROBLEMS.config(problems, "problems"), context)
        with pytest.raises(UsageError, match=r"0\.00 of unseen sums .* has not learnt to add"):
            run(config(**ignorant, tokens="words", least_greedy=0.5), context)
        result = run(config(**ignorant, tokens="words"), context)
    assert result.rows == 0  # it was there
    assert "0.00 of unseen sums right at temperature 0" in result.summary
