"""One rank or two (gloo), whole or sharded weights (FSDP2): the same losses and the same model."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from curate.warehouse import Warehouse
from tests.train.test_dpo import judged
from tests.train.test_sft import corpus, weights_of

CODE = "import sys; from tests.train.ranks import main; main(*sys.argv[1:])"


def launch(ranks: int, kind: str, model: Path, warehouse: Path, fsdp: bool, code: int = 0) -> None:
    """Like `torchrun --nproc-per-node=ranks`: one process per rank, placed by the environment."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    root = Path(__file__).parents[2]
    processes = []
    for rank in range(ranks):
        place = {
            "RANK": rank,
            "LOCAL_RANK": rank,
            "WORLD_SIZE": ranks,
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": port,
        }
        environment = (
            os.environ
            | {k: str(v) for k, v in place.items()}
            | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(root)}
        )
        command = [sys.executable, "-c", CODE, kind, str(model), str(warehouse), str(int(fsdp))]
        processes.append(
            subprocess.Popen(
                command,
                env=environment,
                cwd=root,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
        )
    try:
        outputs = [process.communicate(timeout=240)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert all(p.returncode == code for p in processes), "\n".join(text[-2000:] for text in outputs)


@pytest.fixture(scope="module")
def alone(tiny_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Any]:
    """Return the outcome of the same run in one process."""

    @cache
    def run(kind: str) -> Any:
        wh = Warehouse(tmp_path_factory.mktemp(f"alone-{kind}"))
        corpus(wh)
        judged(wh)
        launch(1, kind, tiny_dir, wh.root, False)
        return outcome(wh)

    return run


def outcome(wh: Warehouse) -> tuple[dict[str, list[float]], dict[str, Any]]:
    rows = wh.sql(
        "SELECT name, list(value ORDER BY step) AS v FROM metrics "
        "WHERE name IN ('loss', 'grad_norm') GROUP BY name"
    )
    path = wh.sql("SELECT path FROM models")["path"][0]
    return dict(rows.iter_rows()), weights_of(wh.root / path)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "fsdp"),
    [
        ("sft", False),
        ("sft", True),
        ("grpo", False),
        ("grpo", True),
        ("lora", True),
        ("bf16", True),
        ("dpo", True),
    ],
)
def test_two_ranks_train_as_one(
    tiny_dir: Path, tmp_path: Path, alone: Callable[[str], Any], kind: str, fsdp: bool
) -> None:
    wh = Warehouse(tmp_path)
    corpus(wh)
    judged(wh)
    launch(2, kind, tiny_dir, wh.root, fsdp)
    if kind == "bf16":  # sums of rounded numbers depend on how rows were cut into micro-batches
        same_run(outcome(wh), alone(kind), rel=2e-2, apart=5e-4)
    else:
        same_run(outcome(wh), alone(kind))


@pytest.mark.slow
def test_gradients_of_two_ranks_are_those_of_one_in_float64(tiny_dir: Path, tmp_path: Path) -> None:
    by_ranks = {}
    for name, ranks, fsdp in (("one", 1, False), ("whole", 2, False), ("sharded", 2, True)):
        (tmp_path / name).mkdir()
        launch(ranks, "gradients", tiny_dir, tmp_path / name, fsdp)
        by_ranks[name] = torch.load(tmp_path / name / "gradients.pt")
    one = by_ranks.pop("one")
    assert set(one) == {"grpo", "dr_grpo", "dapo", "sft"}
    for ranks, losses in by_ranks.items():
        for loss, gradients in losses.items():
            assert gradients.keys() == one[loss].keys()
            assert max(float(g.abs().max()) for g in one[loss].values()) > 1e-3, (
                "zeros would prove nothing"
            )
            for name, gradient in gradients.items():
                assert gradient.dtype == torch.float64
                assert torch.allclose(gradient, one[loss][name], rtol=0, atol=1e-10), (
                    ranks,
                    loss,
                    name,
                )


def same_run(got: Any, expected_run: Any, rel: float = 1e-4, apart: float = 1e-5) -> None:
    metrics, weights = got
    expected, plain = expected_run
    assert len(metrics["loss"]) == len(expected["loss"]) > 1
    for name in ("loss", "grad_norm"):
        assert metrics[name] == pytest.approx(expected[name], rel=rel, abs=1e-6), name
    assert plain.keys() == weights.keys()
    # Adam divides by the gradient's size: if that is near zero, rounding decides the direction of a
    # step
    total = sum(float((weights[k] - plain[k]).abs().sum()) for k in plain)
    assert total / sum(v.numel() for v in plain.values()) < apart


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "ranks"), [("sft", 2), ("sft", 1), ("lora", 2), ("dpo", 1)])
def test_a_sharded_checkpoint_resumes_with_as_many_ranks_or_fewer(
    tiny_dir: Path, tmp_path: Path, alone: Callable[[str], Any], kind: str, ranks: int
) -> None:
    wh = Warehouse(tmp_path)
    corpus(wh)
    judged(wh)
    launch(2, f"{kind}-until-2", tiny_dir, wh.root, True, code=9)
    (step,) = tmp_path.glob("checkpoints/*/step-000002")
    shards = {p.name: p.stat().st_size for p in (step / "shards").glob("*.distcp")}
    # each rank wrote about half of the two moments; the file of the first rank holds none of them
    assert len(shards) == 2
    assert max(shards.values()) < 1.5 * min(shards.values())
    assert "optimizer" not in torch.load(step / "trainer.pt", weights_only=False)
    if kind == "sft":
        moments = 2 * sum(4 * v.numel() for v in weights_of(step / "model").values())
        assert sum(shards.values()) < 2 * moments, (
            "no moment is written twice (headings take room too)"
        )
    launch(ranks, kind, tiny_dir, wh.root, True)
    same_run(outcome(wh), alone(kind))


@pytest.mark.slow
def test_torchrun_of_the_command_line(tiny_dir: Path, tmp_path: Path) -> None:
    """Started as by a user: one rank prints and writes, and sft and grpo give one model each."""
    root = Path(__file__).parents[2]
    wh = Warehouse(tmp_path / "wh")
    corpus(wh)
    problems = tmp_path / "problems.jsonl"
    problems.write_text(
        "".join(f'{{"question": "say {c}", "reference": "{c}"}}\n' for c in "abcdefgh")
    )
    compute = ["compute.precision=fp32", "compute.device=cpu"]
    source = (
        f"problems={{sources: [{{source: files, path: {problems}, verifier: exact}}], held_out: 2}}"
    )
    small = [
        "template=plain",
        "form=plain",
        "steps=2",
        "prompts=2",
        "samples=2",
        "sampling.max_tokens=4",
    ]
    engine = ["engine.name=transformers", "engine.dtype=float32", "rewards={accuracy: 1.0}"]
    runs = {"sft": ["corpus=sums", "batch_size=4"], "grpo": [source, *small, *engine]}
    environment = os.environ | {
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(root),
        "CUDA_VISIBLE_DEVICES": "",
    }
    starter = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
    ]
    for kind, options in runs.items():
        command = [
            *starter,
            "-m",
            "curate.cli",
            "train",
            kind,
            "-w",
            str(wh.root),
            f"model={tiny_dir}",
        ]
        done = subprocess.run(
            [*command, *options, *compute],
            cwd=root,
            env=environment,
            capture_output=True,
            text=True,
            timeout=240,
        )
        assert done.returncode == 0, done.stderr[-3000:]
        assert done.stdout.count("model: ") == 1
        assert done.stderr.count(f"{kind}: ") == 1, "one rank draws"
        assert wh.sql("SELECT count(*) AS n FROM jobs WHERE kind = ?", [kind])["n"][0] == 1
    assert sorted(wh.sql("SELECT kind FROM models")["kind"]) == ["base", "grpo", "sft"]
    assert wh.sql("SELECT count(*) AS n FROM traces")["n"][0] == 2 * 2 * 2
    wrong = subprocess.run(
        [
            *starter,
            "-m",
            "curate.cli",
            "train",
            "sft",
            "-w",
            str(wh.root),
            f"model={tiny_dir}",
            "corpus=none",
        ],
        cwd=root,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert wrong.returncode != 0
    assert wrong.stderr.count("error: no corpora called 'none'") == 1
