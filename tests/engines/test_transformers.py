"""The transformers engine: text depends on the seed alone; log-probs, end tokens, new weights."""

from __future__ import annotations

import math
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from curate.engines import EngineConfig, open_engine
from curate.engines.base import cut_at_stop
from curate.engines.testing.tiny import make_tiny_model
from curate.engines.transformers import Row, TransformersEngine, sample, truncate
from curate.errors import CurateError, UsageError
from curate.records import Completion, Request, Sampling


def open_tiny(path: Path, rows: int = 8, **settings: Any) -> TransformersEngine:
    return open_engine(EngineConfig(name="transformers", args={"rows": rows}, **settings), path)  # type: ignore[return-value]


def ask(count: int, samples: int = 4, **sampling: Any) -> list[Request]:
    """Prompts of different lengths, each `samples` times with different seeds."""
    settings = Sampling(**{"max_tokens": 24, **sampling})
    return [
        Request(f"r{i}", "What is " + "7 + " * (i // samples) + "1?", 100 + i, settings)
        for i in range(count)
    ]


def texts(completions: Any) -> dict[str, str]:
    return {c.request_id: c.text for c in completions}


def plain_logprobs(path: Path, completion: Completion, temperature: float = 1.0) -> list[float]:
    """Log-probs of the same tokens by one plain forward pass over the whole text."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(path)
    prompt, tokens = completion.prompt_token_ids or [], completion.token_ids or []
    with torch.no_grad():
        logits = model(torch.tensor([prompt + tokens])).logits[0, len(prompt) - 1 : -1]
    chosen = torch.tensor(tokens)[:, None]
    return (logits / temperature).log_softmax(-1).gather(-1, chosen)[:, 0].tolist()  # type: ignore[no-any-return]


def test_text_depends_on_the_seed_and_not_on_the_batch(tiny: Path) -> None:
    requests = ask(24)
    eight = texts(open_tiny(tiny, rows=8).generate(requests))
    assert texts(open_tiny(tiny, rows=3).generate(requests[::-1])) == eight
    (alone,) = open_tiny(tiny, rows=1).generate(requests[10:11])
    assert alone.text == eight["r10"]
    assert len(set(eight.values())) == 24


@pytest.mark.parametrize("temperature", [0.0, 0.7, 1.0])
def test_logprobs_are_those_of_a_plain_forward_pass(tiny: Path, temperature: float) -> None:
    """Prompts of different lengths in one batch, refilled: padding, positions and joined caches
    must have no effect.
    """
    for completion in open_tiny(tiny, rows=4).generate(ask(12, temperature=temperature)):
        expected = plain_logprobs(tiny, completion, temperature or 1.0)
        assert completion.logprobs == pytest.approx(
            expected, abs=5e-5 if torch.cuda.is_available() else 2e-5
        )
        assert completion.completion_tokens == len(completion.token_ids or []) == len(expected)


def test_greedy_takes_the_likeliest_token(tiny: Path) -> None:
    from transformers import AutoModelForCausalLM

    (completion,) = open_tiny(tiny).generate(ask(1, temperature=0.0))
    model = AutoModelForCausalLM.from_pretrained(tiny)
    prompt = torch.tensor([completion.prompt_token_ids])
    expected = model.generate(prompt, max_new_tokens=24, do_sample=False)[0, prompt.shape[1] :]
    assert completion.token_ids == expected.tolist()


def test_all_end_tokens_end_a_text(tiny_ending: Path) -> None:
    engine = open_tiny(tiny_ending)
    assert engine.end_token_ids == {
        1,
        2,
    }  # <eos> of the tokenizer and config, <end> of generation_config alone
    back = list(engine.generate(ask(40)))
    lasts = Counter((c.token_ids or [])[-1] for c in back if c.finish_reason == "stop")
    assert set(lasts) == {1, 2}
    for completion in back:
        ids = completion.token_ids or []
        assert not engine.end_token_ids & set(ids[:-1])
        assert (ids[-1] in engine.end_token_ids) == (completion.finish_reason == "stop")
        assert completion.finish_reason == "stop" or len(ids) == 24
        # special tokens left out
        assert completion.text == engine.tokenizer.decode([i for i in ids if i > 3])


def test_a_stop_string_ends_a_text_and_stays_in_it(tiny: Path) -> None:
    (whole,) = open_tiny(tiny).generate(ask(1))
    stop = whole.text[3:5]
    (cut,) = open_tiny(tiny).generate(ask(1, stop=(stop, "never")))
    assert cut.text == whole.text[: whole.text.index(stop) + 2]
    assert cut.finish_reason == "stop"
    assert cut.token_ids == (whole.token_ids or [])[: len(cut.token_ids or [])]


@given(st.text("abc"), st.lists(st.text("abc", max_size=2), max_size=3))
def test_cut_at_stop_is_the_shortest_prefix_with_a_stop(text: str, stops: list[str]) -> None:
    cut, stopped = cut_at_stop(text, tuple(stops))
    prefixes = [
        text[:n] for n in range(len(text) + 1) if any(s and text[:n].endswith(s) for s in stops)
    ]
    assert stopped == bool(prefixes)
    assert text.startswith(cut)
    if stopped:
        assert any(s and cut.endswith(s) for s in stops)
        assert not any(s and s in cut[: -max(map(len, stops))] for s in stops)
    else:
        assert cut == text


def test_length_is_bounded_by_the_model(tmp_path: Path) -> None:
    short = make_tiny_model(tmp_path / "short", max_len=32)
    requests = [Request("fits", "a" * 30, 0, Sampling()), Request("long", "a" * 32, 0, Sampling())]
    back = {c.request_id: c for c in open_tiny(short).generate(requests)}
    assert (back["fits"].finish_reason, back["fits"].completion_tokens) == ("length", 2)
    assert back["long"].finish_reason == "error"
    assert "32" in str(back["long"].error)


def test_new_weights_arrive_and_wrong_ones_are_refused(
    tiny: Path, tiny_other: Path, tmp_path: Path
) -> None:
    requests = ask(8)
    engine, other = open_tiny(tiny), open_tiny(tiny_other)
    before, wanted = texts(engine.generate(requests)), texts(other.generate(requests))
    assert before != wanted
    old_hash = engine.model_hash
    fingerprint = engine.update_weights(tiny_other)
    assert texts(engine.generate(requests)) == wanted
    assert (engine.model_hash, engine.model_path) == (other.model_hash, tiny_other)
    assert engine.update_weights(tiny) != fingerprint
    assert engine.model_hash == old_hash
    lacking = tmp_path / "lacking"
    shutil.copytree(tiny, lacking)
    tensors = load_file(lacking / "model.safetensors")
    del tensors["model.norm.weight"]
    save_file(tensors, lacking / "model.safetensors", {"format": "pt"})
    with pytest.raises(CurateError, match=r"model\.norm\.weight"):
        engine.update_weights(lacking)


def test_bad_requests_do_not_stop_the_others(tiny: Path) -> None:
    bad = [Request("empty", "", 0, Sampling()), Request("hot", "a", 0, Sampling(temperature=-1))]
    back = {c.request_id: c.finish_reason for c in open_tiny(tiny).generate([*bad, *ask(2)])}
    assert back == {"empty": "error", "hot": "error", "r0": "length", "r1": "length"}


def test_the_engine_refuses_to_split_a_model(tiny: Path) -> None:
    with pytest.raises(UsageError, match="vllm"):
        open_tiny(tiny, tensor_parallel_size=2)


# --- the sampler, in closed form


def row(seed: int, **sampling: Any) -> Row:
    request = Request("r", "p", seed, Sampling(**sampling))
    return Row(request, [1], 10, torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_frequencies_are_the_softmax(temperature: float) -> None:
    """10,000 draws from three tokens: within four standard errors of p ** (1 / T), normalised."""
    probs = torch.tensor([0.6, 0.3, 0.1])
    rows = [row(seed, temperature=temperature) for seed in range(10_000)]
    chosen, logprobs = sample(probs.log().repeat(len(rows), 1), rows)
    expected = probs ** (1 / temperature)
    expected = (expected / expected.sum()).tolist()
    for token, p in enumerate(expected):
        share = (chosen == token).float().mean().item()
        assert abs(share - p) < 4 * math.sqrt(p * (1 - p) / len(rows))
        assert logprobs[chosen == token].tolist() == pytest.approx(
            [math.log(p)] * int((chosen == token).sum()), abs=1e-5
        )


def test_top_p_and_top_k_keep_the_likeliest_tokens() -> None:
    logits = torch.tensor([0.1, 0.5, 0.15, 0.25]).log().repeat(5, 1)
    kept = truncate(logits, [0, 2, 0, 0, 1], [0.5, 1.0, 0.6, 1.0, 0.01]).isfinite().tolist()
    assert kept == [
        [False, True, False, False],  # the likeliest alone has 0.5
        [False, True, False, True],
        [False, True, False, True],  # 0.5 is below 0.6: the next is needed
        [True, True, True, True],
        [False, True, False, False],
    ]


@given(
    st.lists(st.floats(-20, 20), min_size=2, max_size=30), st.floats(0.01, 1.0), st.integers(0, 30)
)
def test_truncation_keeps_the_smallest_likely_set(
    values: list[float], top_p: float, top_k: int
) -> None:
    logits = torch.tensor([values], dtype=torch.float64)
    kept = truncate(logits, [top_k], [top_p]).isfinite()[0]
    assert kept[logits[0].argmax()]
    if top_k:
        assert int(kept.sum()) <= top_k
    outside = logits[0][~kept]
    assert not len(outside) or logits[0][kept].min() >= outside.max()


def test_logprobs_after_truncation_sum_to_one() -> None:
    rows = [row(seed, top_p=0.7) for seed in range(200)]
    chosen, logprobs = sample(torch.tensor([0.5, 0.25, 0.15, 0.1]).log().repeat(200, 1), rows)
    assert set(chosen.tolist()) == {0, 1}
    assert {round(math.exp(x), 4) for x in logprobs.tolist()} == {round(2 / 3, 4), round(1 / 3, 4)}
