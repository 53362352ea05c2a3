"""A student comes close to its teacher: on logits, forward and reverse, and on-policy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from curate.engines import EngineConfig
from curate.engines.testing.tiny import make_tiny_model
from curate.engines.transformers import TransformersEngine
from curate.errors import UsageError
from curate.train.config import DistillConfig
from curate.train.distill import train_distill
from curate.train.grpo import train_grpo
from curate.warehouse import Warehouse
from tests.train.test_grpo import PROBLEMS, Judge, by_chance, config
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
        Judge(by_chance),
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
