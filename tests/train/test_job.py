"""Training from a user's config: distillation by kind, and one message for bad input."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import polars as pl
import pytest

torch = pytest.importorskip("torch")

from curate.engines.testing.tiny import make_tiny_model
from curate.errors import UsageError
from curate.job import Context
from curate.records import Problem
from curate.train import job as jobs
from curate.warehouse import Warehouse
from tests.train.test_grpo import ScriptedVerifier, by_chance
from tests.train.test_sft import EXACT, corpus


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(
        tmp_path_factory.mktemp("student"), hidden=16, layers=1, heads=2, kv_heads=1, seed=5
    )


@pytest.fixture(scope="module")
def stranger(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with another tokenizer."""
    return make_tiny_model(
        tmp_path_factory.mktemp("stranger"), hidden=16, layers=1, characters="0123456789 <>/:+."
    )


def problems(folder: Path) -> dict[str, Any]:
    path = folder / "letters.jsonl"
    path.write_text("".join(f'{{"question": "say {c}", "reference": "{c}"}}\n' for c in "abcdefgh"))
    return {"sources": [{"source": "files", "path": str(path), "verifier": "exact"}], "held_out": 2}


def settings(kind: str, student: Path, teacher: Path, folder: Path) -> dict[str, Any]:
    common = {"model": str(student), "teacher": str(teacher), "kind": kind, "compute": EXACT}
    if kind != "on-policy":
        return common | {"corpus": "sums", "batch_size": 6}
    small = {"template": "plain", "form": "plain", "steps": 1, "prompts": 2, "samples": 2}
    engine = {"name": "transformers", "dtype": "float32"}
    return (
        common
        | small
        | {"problems": problems(folder), "engine": engine, "sampling": {"max_tokens": 4}}
    )


@pytest.mark.parametrize("kind", ["sequences", "forward", "reverse", "on-policy"])
def test_each_way_of_distilling_from_a_config(
    tiny_dir: Path, student: Path, stranger: Path, tmp_path: Path, kind: str
) -> None:
    wh = Warehouse(tmp_path)
    corpus(wh)
    with Context(wh) as context:
        data = settings(kind, student, tiny_dir, tmp_path)
        assert str(jobs.describe("distill", data, context, "distill")).startswith("model ")
        result = jobs.run("distill", data, context, "distill")
        assert result is not None
        assert result.model is not None
        assert (Path(result.model) / "model.safetensors").exists()
        models = wh.sql("SELECT kind, name FROM models ORDER BY kind")
        assert models.filter(pl.col("kind") == "distill")["name"].to_list() == ["distill"]
        assert models.filter(pl.col("kind") == "base").height == 2, (
            "student and teacher are both known"
        )
        if kind == "on-policy":
            assert result.facts["run_id"]
            kl = wh.sql("SELECT value FROM metrics WHERE name = 'kl'")["value"]
            assert abs(kl[0]) > 1e-3, "the teacher is another model"
        other = settings(kind, student, stranger, tmp_path)
        if kind == "sequences":
            assert jobs.run("distill", other, context, "distill") is not None
        else:
            with pytest.raises(UsageError, match=r"do not share a tokenizer.*kind: sequences"):
                jobs.run("distill", other, context, "distill")


def test_later_stages_start_from_the_best_policy_and_the_summary_says_so(
    tiny_dir: Path, tmp_path: Path
) -> None:
    seen: list[str] = []

    def rule(problem: Problem, text: str) -> str:
        """Held-out problems are solved by the second evaluation of four, after the first round."""
        if problem.split != "held-out":
            return by_chance(problem, text)
        seen.append(text)
        return "correct" if len(seen) in (3, 4) else "wrong"

    data = settings("on-policy", tiny_dir, tiny_dir, tmp_path) | {
        "evaluation": {"every": 1, "samples": 1},
        "rewards": {"accuracy": 1.0},
        "steps": 3,
        "samples": 4,
    }
    with Context(Warehouse(tmp_path)) as context:
        context._pool = ScriptedVerifier(rule)
        data = {key: value for key, value in data.items() if key not in ("teacher", "kind")}
        result = jobs.run("grpo", data, context, "grpo")
        context._pool = None
    assert result is not None
    assert result.model == result.facts["best"] != result.facts["last"]
    assert "kept the best by held-out accuracy (step 1), not the last" in result.summary


def test_a_teacher_is_required(student: Path, tmp_path: Path) -> None:
    with Context(Warehouse(tmp_path)) as context:
        for kind in ("forward", "on-policy"):
            with pytest.raises(UsageError, match="teacher: missing"):
                jobs.run(
                    "distill",
                    {"model": str(student), "kind": kind, "corpus": "x"},
                    context,
                    "distill",
                )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("sft model={tiny}", "corpus: missing"),
        ("sft model={tiny} corpus=none", "no corpora called 'none'"),
        (
            "sft model={tiny} corpus=sums learning_rate=1",
            "learning_rate: no such key; there are batch_size",
        ),
        ("sft model=/no/where corpus=sums", "/no/where"),
        ("sft model={tiny} corpus=empty", "the corpus is empty"),
        (
            "sft model={tiny} corpus=sums max_length=30 too_long=fail",
            "tokens, more than max_length=30",
        ),
        ("sft model={tiny} corpus=sums max_length=4", "all 12 rows are longer than max_length=4"),
        ("sft model={tiny} corpus=sums trackers=[wandb]", "wandb is not installed"),
        ("distill model={tiny} teacher={stranger} corpus=sums", "do not share a tokenizer"),
        (
            "distill model={tiny} teacher={tiny} kind=onpolicy",
            "kind: 'onpolicy'; choose from sequences, forward",
        ),
        ("distill model={tiny} teacher={tiny} kind=on-policy", "problems: missing"),
        ("grpo model={tiny}", "problems: missing"),
        ("grpo model={tiny} problems=none", "none"),
        (
            "grpo model={tiny} problems=none prompts=3 mini_batches=2",
            "prompts (3) must be a multiple of mini_batches",
        ),
        (
            "grpo model={tiny} problems=none samples=1",
            "samples: Input should be greater than or equal to 2",
        ),
        ("grpo model={tiny} problems=none loss.kl=k4", "loss.kl"),
    ],
)
def test_bad_input_on_the_command_line_is_one_message(
    tiny_dir: Path,
    stranger: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    arguments: str,
    message: str,
) -> None:
    from curate.cli import main

    wh = Warehouse(tmp_path)
    corpus(wh)
    wh.write("corpora", "empty", [], key=["empty"])
    monkeypatch.setitem(sys.modules, "wandb", None)
    words = arguments.format(tiny=tiny_dir, stranger=stranger).split()
    quick = [] if words[0] == "grpo" else ["compute.device=cpu", "compute.precision=fp32"]
    monkeypatch.setattr(sys, "argv", ["curate", "train", *words, *quick, "-w", str(tmp_path)])
    with pytest.raises(SystemExit) as stopped:
        main()
    out = capsys.readouterr()
    assert stopped.value.code == 2
    assert out.err.count("error: ") == 1
    assert message in out.err
    assert "Traceback" not in out.err


@pytest.mark.slow
def test_sft_as_a_process_shows_an_example_with_its_mask(tiny_dir: Path, tmp_path: Path) -> None:
    corpus(Warehouse(tmp_path))
    command = [
        sys.executable,
        "-m",
        "curate.cli",
        "train",
        "sft",
        "-w",
        str(tmp_path),
        f"model={tiny_dir}",
    ]
    options = ["corpus=sums", "compute.device=cpu", "compute.precision=fp32"]
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [*command, *options], capture_output=True, text=True, cwd=root, timeout=240
    )
    assert done.returncode == 0, done.stderr
    assert "Assistant:⟦ <think> one more </think> <answer> 1 </answer><eos>⟧" in done.stderr
    assert done.stdout.startswith("1 step on 12 examples")
