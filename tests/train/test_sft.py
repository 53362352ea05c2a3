"""SFT on a tiny model: trained tokens, order, limits, resuming, and messages for bad input."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import polars as pl
import pytest

torch = pytest.importorskip("torch")

from curate.errors import CurateError, UsageError
from curate.train.config import SFTConfig
from curate.train.sft import batch_order, load_examples, mixture, show_example, train_sft
from curate.warehouse import Warehouse
from tests.train.conftest import DEVICE

EXACT = {"precision": "fp32", "device": DEVICE}


def corpus(wh: Warehouse, name: str = "sums", n: int = 12, **columns: Any) -> Any:
    rows = [
        {
            "corpus": name,
            "trace_id": f"t{i:03d}",
            "problem_id": f"p{i:03d}",
            "domain": "math" if i % 2 else "logic",
            "prompt": f"User: {i} + 1. Assistant:",
            "completion": f" <think> one more </think> <answer> {i + 1} </answer>",
            "difficulty": 1 - i / 20,
            "weight": 1.0,
        }
        | {k: v(i) for k, v in columns.items()}
        for i in range(n)
    ]
    return wh.write("corpora", name, rows, key=[name, n, json.dumps(rows)])


def config(tiny_dir: Path, **changes: Any) -> SFTConfig:
    data = {
        "model": str(tiny_dir),
        "corpus": "sums",
        "batch_size": 4,
        "compute": EXACT,
        "optim": {"lr": 1e-2},
    }
    return SFTConfig.model_validate(data | changes)


def test_loss_falls_and_the_model_loads_as_it_is(tiny_dir: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    wh = Warehouse(tmp_path)
    corpus(wh)
    seen: list[tuple[int, int, float]] = []
    result = train_sft(
        config(tiny_dir, epochs=15), wh, lambda s, t, m: seen.append((s, t, m["loss"]))
    )
    assert [s for s, _, _ in seen] == list(range(1, 46))
    assert seen[-1][2] < 0.3 * seen[0][2]
    model = AutoModelForCausalLM.from_pretrained(result.model_path)
    tokenizer = AutoTokenizer.from_pretrained(result.model_path)
    text = " <think> one more </think> <answer> 4 </answer>"
    ids = torch.tensor(
        [[*tokenizer.encode("User: 3 + 1. Assistant:" + text), tokenizer.eos_token_id]]
    )
    assert model(ids, labels=ids).loss < 3
    metrics = wh.sql(
        "SELECT step, value FROM metrics WHERE run_id = ? AND name = 'loss' ORDER BY step",
        [result.run_id],
    )
    assert metrics["value"].to_list() == pytest.approx([loss for _, _, loss in seen])
    row = wh.sql("SELECT kind, step, run_id, path FROM models").row(0, named=True)
    assert (row["kind"], row["step"], row["run_id"]) == ("sft", 45, result.run_id)
    assert (tmp_path / row["path"]).is_dir()


@pytest.mark.parametrize("micro", [1280, 100, 1])
def test_the_loss_of_a_step_is_the_mean_over_completion_tokens(
    tiny_dir: Path, tmp_path: Path, micro: int
) -> None:
    """Compare with transformers; its labels leave the prompt out and end with the end token.

    The examples of a batch go through the model at once, in twos or threes, or one by one.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    def completion(i: int) -> str:
        return f" <think>{' one more' * (i + 1)} </think> <answer> {i + 1} </answer>"

    wh = Warehouse(tmp_path)
    corpus(wh, n=4, completion=completion)
    steps: list[dict[str, float]] = []
    train_sft(
        config(tiny_dir, compute=EXACT | {"micro_batch_tokens": micro}),
        wh,
        lambda s, t, m: steps.append(m),
    )
    model, tokenizer = (
        AutoModelForCausalLM.from_pretrained(tiny_dir),
        AutoTokenizer.from_pretrained(tiny_dir),
    )
    total, count = torch.zeros(()), 0
    for i in range(4):
        prompt = tokenizer.encode(f"User: {i} + 1. Assistant:")
        whole = [*tokenizer.encode(completion(i)), tokenizer.eos_token_id]
        logs = torch.log_softmax(model(torch.tensor([prompt + whole])).logits[0], -1)
        total = total - sum(logs[len(prompt) + k - 1, t] for k, t in enumerate(whole))
        count += len(whole)
    mean = total / count
    mean.backward()
    norm = torch.nn.utils.get_total_norm([p.grad for p in model.parameters() if p.grad is not None])
    assert [m["loss"] for m in steps] == pytest.approx([float(mean.detach())], rel=1e-5)
    assert [m["grad_norm"] for m in steps] == pytest.approx([float(norm)], rel=1e-4)


def test_labels_hold_think_and_the_end_token(tiny_dir: Path, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    wh, tokenizer = Warehouse(tmp_path), AutoTokenizer.from_pretrained(tiny_dir)
    version = corpus(wh, n=2)
    settings = config(tiny_dir)
    examples, counts = load_examples([(version, mixture(settings)[0])], settings, tokenizer)
    trained = tokenizer.decode(examples[0].tokens.completion)
    assert trained == " <think> one more </think> <answer> 1 </answer><eos>"
    assert show_example(examples[0], tokenizer) == f"User: 0 + 1. Assistant:⟦{trained}⟧"
    assert counts["tokens"] == sum(len(e.tokens.completion) for e in examples)


def test_a_tokenizer_that_loses_tags_is_detected_before_the_first_step(
    tiny_dir: Path, tmp_path: Path
) -> None:
    """Its vocabulary has no angle bracket."""
    import shutil

    wh = Warehouse(tmp_path / "wh")
    corpus(wh)
    poor = tmp_path / "poor"
    shutil.copytree(tiny_dir, poor)
    tokenizer = json.loads((poor / "tokenizer.json").read_text())
    vocabulary = tokenizer["model"]["vocab"]
    assert "<" in vocabulary
    vocabulary["⟨"] = vocabulary.pop("<")
    (poor / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(CurateError, match=r"the tokenizer loses 4 of the 4 tags of trace t\d{3}"):
        train_sft(config(poor), wh)


def test_too_long_is_skipped_truncated_or_refused(tiny_dir: Path, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    wh, tokenizer = Warehouse(tmp_path), AutoTokenizer.from_pretrained(tiny_dir)
    version = corpus(wh, completion=lambda i: "x" * (50 if i == 3 else 5))

    def load(**changes: Any) -> Any:
        settings = config(tiny_dir, max_length=40, **changes)
        return load_examples([(version, mixture(settings)[0])], settings, tokenizer)

    examples, counts = load(too_long="skip")
    assert (len(examples), counts["too_long"]) == (11, 1)
    examples, counts = load(too_long="truncate")
    assert (len(examples), counts["too_long"]) == (12, 1)
    assert max(len(e.tokens.prompt) + len(e.tokens.completion) for e in examples) == 40
    with pytest.raises(UsageError, match=r"t003 has \d+ tokens, more than max_length=40"):
        load(too_long="fail")


def test_each_epoch_is_shuffled_anew_and_the_first_is_easiest_first_on_request(
    tiny_dir: Path, tmp_path: Path
) -> None:
    from transformers import AutoTokenizer

    wh, tokenizer = Warehouse(tmp_path), AutoTokenizer.from_pretrained(tiny_dir)
    version = corpus(wh)
    settings = config(tiny_dir, epochs=2.5)
    examples, _ = load_examples([(version, mixture(settings)[0])], settings, tokenizer)
    flat = [i for batch in batch_order(examples, settings) for i in batch]
    assert len(flat) == 30
    assert sorted(flat[:12]) == sorted(flat[12:24]) == list(range(12))
    assert flat[:12] != flat[12:24]
    assert len(set(flat[24:])) == 6
    easy = [
        i for batch in batch_order(examples, config(tiny_dir, order="difficulty")) for i in batch
    ]
    levels = [examples[i].difficulty for i in easy]
    assert levels == sorted(levels)


def test_a_mixture_weighs_and_repeats(tiny_dir: Path, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    wh, tokenizer = Warehouse(tmp_path), AutoTokenizer.from_pretrained(tiny_dir)
    a, b = corpus(wh, "a", 4), corpus(wh, "b", 4)
    parts = [{"corpus": "a", "weight": 2.0, "share": 1.5}, {"corpus": "b", "share": 0.5}]
    settings = config(tiny_dir, corpus=parts, domain_weights={"logic": 3.0})
    examples, _ = load_examples(
        list(zip((a, b), mixture(settings), strict=True)), settings, tokenizer
    )
    assert len(examples) == 6 + 2
    weights = {e.trace_id: e.weight for e in examples[:6]}
    assert weights["t000"] == 6.0
    assert weights["t001"] == 2.0


def test_a_finished_run_is_not_run_again(tiny_dir: Path, tmp_path: Path) -> None:
    wh = Warehouse(tmp_path)
    corpus(wh)
    first = train_sft(config(tiny_dir), wh)
    again = train_sft(config(tiny_dir), wh, lambda *_: pytest.fail("trained again"))
    assert again.skipped
    assert (again.run_id, again.model_path, again.steps) == (
        first.run_id,
        first.model_path,
        first.steps,
    )
    assert train_sft(config(tiny_dir, seed=1), wh).run_id != first.run_id


def killed(at: int) -> Any:
    def progress(step: int, total: int, metrics: dict[str, float]) -> None:
        if step == at:
            raise KeyboardInterrupt

    return progress


def weights_of(path: Path) -> dict[str, Any]:
    from safetensors.torch import load_file

    return load_file(path / "model.safetensors")


@pytest.mark.parametrize("lora", [None, {"rank": 4}])
@pytest.mark.parametrize("at", [1, 4, 5])
def test_a_killed_run_ends_with_the_same_weights_bit_for_bit(
    tiny_dir: Path, tmp_path: Path, at: int, lora: dict[str, Any] | None
) -> None:
    settings = config(tiny_dir, epochs=2, checkpoint={"every": 2}, compute=EXACT | {"lora": lora})
    whole, broken = Warehouse(tmp_path / "a"), Warehouse(tmp_path / "b")
    corpus(whole)
    corpus(broken)
    undisturbed = train_sft(settings, whole)
    with pytest.raises(KeyboardInterrupt):
        train_sft(settings, broken, killed(at))
    result = train_sft(settings, broken)
    assert result.resumed_from == at // 2 * 2 - (0 if at % 2 else 2)
    a, b = weights_of(undisturbed.model_path), weights_of(result.model_path)
    assert a.keys() == b.keys()
    assert all(torch.equal(a[k], b[k]) for k in a)
    assert any(not torch.equal(a[k], v) for k, v in weights_of(tiny_dir).items())
    query = "SELECT step, value FROM metrics WHERE name = 'loss' ORDER BY step"
    assert whole.sql(query).equals(broken.sql(query))


def test_a_kill_before_the_model_is_recorded_leaves_none_unrecorded(
    tiny_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from curate.train import runs

    def dies(*_: Any) -> None:
        raise KeyboardInterrupt

    wh = Warehouse(tmp_path)
    corpus(wh)
    with monkeypatch.context() as patch:
        patch.setattr(runs, "record_model", dies)
        with pytest.raises(KeyboardInterrupt):
            train_sft(config(tiny_dir), wh)
    result = train_sft(config(tiny_dir), wh)
    assert not result.skipped
    assert wh.sql("SELECT run_id FROM models WHERE kind = 'sft'")["run_id"].to_list() == [
        result.run_id
    ]


def test_a_non_finite_loss_stops_with_step_and_traces(
    tiny_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from curate.train import sft

    wh = Warehouse(tmp_path)
    corpus(wh)
    calls = []

    def broken(new: Any, weight: Any) -> Any:
        calls.append(1)
        return (weight * new).sum() * (float("nan") if len(calls) == 3 else -1.0)

    monkeypatch.setattr(sft, "sft_loss", broken)
    with pytest.raises(CurateError, match=r"step 3 is not finite; its traces: t\d{3}"):
        train_sft(config(tiny_dir, checkpoint={"every": 1}), wh)
    monkeypatch.undo()
    assert train_sft(config(tiny_dir, checkpoint={"every": 1}), wh).resumed_from == 2


def test_bad_input_says_what_is_wrong(tiny_dir: Path, tmp_path: Path) -> None:
    wh = Warehouse(tmp_path)
    corpus(wh)
    with pytest.raises(UsageError, match="no corpora called 'nothing'"):
        train_sft(config(tiny_dir, corpus="nothing"), wh)
    with pytest.raises(UsageError):
        train_sft(config(tmp_path / "no-model"), wh)
    wh.write("corpora", "empty", [], key=["empty"])
    with pytest.raises(UsageError, match="the corpus is empty"):
        train_sft(config(tiny_dir, corpus="empty"), wh)
    with pytest.raises(
        UsageError, match="nothing to train on: all 12 rows are longer than max_length=4"
    ):
        train_sft(config(tiny_dir, max_length=4), wh)
    other = wh.version("corpora", "columns", "1")
    other.path.mkdir(parents=True)
    pl.DataFrame({"corpus": ["c"], "text": ["x"]}).write_parquet(other.part("0"))
    other.seal()
    with pytest.raises(UsageError, match="no column completion, prompt"):
        train_sft(config(tiny_dir, corpus="columns"), wh)


def test_lora_merged_equals_unmerged(tiny_dir: Path, tmp_path: Path) -> None:
    from curate.train.config import LoraConfig, ModelConfig
    from curate.train.model.layout import PromptCompletion
    from curate.train.model.loading import load_policy, write_model

    policy, tokenizer = load_policy(
        tiny_dir, ModelConfig(precision="fp32", device=DEVICE, lora=LoraConfig(rank=4))
    )
    torch.manual_seed(0)
    with torch.no_grad():
        for name, parameter in policy.model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1)
    sequences = [PromptCompletion([5, 6, 7], [8, 9, 10, 11])]
    unmerged = policy.all_logprobs(sequences)[0]
    with policy.without_adapters():
        before = policy.all_logprobs(sequences)[0]
    write_model(policy, tokenizer, tmp_path / "merged", "float32")
    merged, _ = load_policy(tmp_path / "merged", ModelConfig(precision="fp32", device=DEVICE))
    assert torch.allclose(merged.all_logprobs(sequences)[0], unmerged, atol=1e-5)
    assert not torch.allclose(before, unmerged, atol=1e-2)
    assert sum(p.requires_grad for p in policy.model.parameters()) < len(
        list(policy.model.parameters())
    )
