"""A student comes close to its teacher: on logits, forward and reverse, and on-policy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

import polars as pl
from transformers import AutoConfig, AutoModelForCausalLM

from curate.engines import EngineConfig
from curate.engines.testing.tiny import make_tiny_model
from curate.engines.transformers import TransformersEngine
from curate.errors import UsageError
from curate.train.config import DistillConfig, ModelConfig
from curate.train.distill import train_distill
from curate.train.grpo import loss_rows, train_grpo
from curate.train.losses import divergence
from curate.train.model.layout import PromptCompletion
from curate.train.model.policy import Policy
from curate.warehouse import Warehouse
from tests.train.test_grpo import PROBLEMS, ScriptedVerifier, by_chance, config
from tests.train.test_sft import EXACT, corpus


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Smaller than the teacher, with the same tokenizer."""
    return make_tiny_model(
        tmp_path_factory.mktemp("student"), hidden=16, layers=1, heads=2, kv_heads=1, seed=5
    )


@pytest.mark.parametrize("kind", ["forward", "reverse"])
def test_the_divergence_from_the_teacher_falls(
    tiny_dir: Path, student: Path, tmp_path: Path, kind: str
) -> None:
    wh = Warehouse(tmp_path)
    corpus(wh)
    losses: list[float] = []
    settings = DistillConfig.model_validate(
        {
            "model": str(student),
            "teacher": str(tiny_dir),
            "corpus": "sums",
            "kind": kind,
            "epochs": 20,
            "batch_size": 12,
            "compute": EXACT,
            "optim": {"lr": 1e-2},
        }
    )
    result = train_distill(settings, wh, lambda s, t, m: losses.append(m["loss"]))
    assert losses[-1] < 0.7 * losses[0]
    assert train_distill(settings, wh).skipped
    assert wh.sql("SELECT kind FROM models")["kind"].to_list() == ["distill"]
    assert result.steps == 20


def test_a_student_of_itself_has_nothing_to_learn(tiny_dir: Path, tmp_path: Path) -> None:
    wh = Warehouse(tmp_path)
    corpus(wh)
    settings = DistillConfig(
        model=str(tiny_dir), teacher=str(tiny_dir), corpus="sums", compute=EXACT
    )  # type: ignore[arg-type]
    metrics = train_distill(settings, wh).metrics
    assert metrics["loss"] == pytest.approx(0, abs=1e-6)
    assert metrics["grad_norm"] == pytest.approx(0, abs=1e-5)


def test_on_policy_the_student_samples_and_the_teacher_scores(
    tiny_dir: Path, student: Path, tmp_path: Path
) -> None:
    engine = TransformersEngine(EngineConfig(name="transformers", dtype="float32"), student)
    kl: list[float] = []
    settings = config(
        student,
        steps=40,
        prompts=8,
        samples=16,
        rewards={"accuracy": 0.0},
        loss={"beta": 1.0, "kl": "k1", "reference": str(tiny_dir)},
        optim={"lr": 1e-2, "schedule": "constant", "warmup": 0},
        checkpoint={"every": 0},
    )
    train_grpo(
        settings,
        Warehouse(tmp_path),
        engine,
        ScriptedVerifier(by_chance),
        PROBLEMS,
        lambda s, t, m: kl.append(m["kl"]),
    )
    assert sum(kl[-5:]) < 0.9 * sum(
        kl[:5]
    )  # the student is too small to come closer than about 0.8


def test_models_without_a_common_tokenizer_are_refused(tiny_dir: Path, tmp_path: Path) -> None:
    other: Any = make_tiny_model(tmp_path / "other", characters="0123456789")
    with pytest.raises(UsageError, match="do not share a tokenizer"):
        train_distill(
            DistillConfig(model=str(tiny_dir), teacher=str(other), corpus="sums"),
            Warehouse(tmp_path),
        )


@pytest.mark.parametrize(("weight", "kept"), [(0.0, True), (1.0, False)])
def test_without_a_reward_problems_without_a_verifier_are_trained_on(
    tiny_dir: Path, weight: float, kept: bool
) -> None:
    frame = pl.DataFrame(
        {
            "prompt_token_ids": [[5, 6]],
            "completion_token_ids": [[7]],
            "trace_id": ["t"],
            "group": [0],
            "advantage": [0.0],
            "logprobs": [[-1.0]],
            "reward": [None],
            "finish_reason": ["stop"],
            "completion_tokens": [1],
        },
        schema_overrides={"reward": pl.Float64},
    )
    settings = config(tiny_dir, rewards={"accuracy": weight}, loss={"beta": 1.0, "kl": "k1"})
    (row,) = loss_rows(frame, settings)
    assert row.kept == kept


def test_exact_distillation_uses_both_heads_as_the_models_define_them() -> None:
    """Scale and softcap of the heads, and vocabularies that are padded differently."""
    torch.manual_seed(0)
    policies = {}
    for kind, size, options in (
        ("granite", 120, {"logits_scaling": 8.0}),
        ("gemma2", 128, {"final_logit_softcapping": 2.0, "head_dim": 8}),
    ):
        small = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2}
        small |= {"num_attention_heads": 2, "num_key_value_heads": 2, "initializer_range": 0.5}
        config = AutoConfig.for_model(kind, vocab_size=size, pad_token_id=0, **small, **options)
        model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
        policies[kind] = Policy(model, ModelConfig(precision="fp32", device="cpu"), device="cpu")
    sequences = [PromptCompletion([5, 6, 7], [8, 9]), PromptCompletion([5, 6], [10, 11, 12])]

    def logits(kind: str, sequence: PromptCompletion) -> Any:
        ids = torch.tensor([[*sequence.prompt, *sequence.completion]])
        return policies[kind].model(input_ids=ids).logits[0, len(sequence.prompt) - 1 : -1]

    student = policies["granite"]
    layout = student.layout(sequences)
    logprobs, distances = student.divergences(layout, policies["gemma2"])
    for i, sequence in enumerate(sequences):
        ours, theirs = logits("granite", sequence), logits("gemma2", sequence)[:, :120]
        assert torch.allclose(distances[layout.row == i], divergence(ours, theirs), atol=1e-4)
        target = torch.tensor(sequence.completion)[:, None]
        plain = torch.log_softmax(ours, -1).gather(1, target)[:, 0]
        assert torch.allclose(logprobs[layout.row == i], plain, atol=1e-4)
