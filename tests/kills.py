"""SIGKILL in every stage of a pipeline, at a random moment of it, and a comparison with an
uninterrupted run.

    python -m tests.kills r1-small FOLDER [--seed N] [key=value ...]

runs `curate run` once without kills (FOLDER/calm); then again (FOLDER/killed), where the process
group is killed once in each stage, at a random share of the time that the stage took without kills
(a stage that is over sooner is put back and killed earlier), and the next run resumes. Exits with
1 if the rows differ. `SMALL` makes a recipe small enough for that: the base learns for 150 steps,
and a reward for length differs within every group, so that weights move.
"""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import polars as pl

from curate.warehouse import Warehouse

BEGINS = re.compile(r"^\[\d+/\d+\] (\S+)$")
TOLD = re.compile(r"^\[\d+/\d+\] \S+: (?!done before)|^\d+ stages? run|^nothing to do|rror")

# columns that depend on names, times and paths, which do not count
QUERIES = {
    "problems": "SELECT problem_id, question, reference, split FROM problems ORDER BY ALL",
    "traces": "SELECT trace_id, attempt, problem_id, sample_index, recipe, form, model_hash, "
    "policy_step, seed, "
    "completion_token_ids, completion, finish_reason FROM traces ORDER BY ALL",
    "verdicts": "SELECT trace_id, verifier, verifier_version, kind, verdict, extracted "
    "FROM verdicts ORDER BY ALL",
    "signals": "SELECT * FROM signals ORDER BY ALL",
    "rollouts": "SELECT trace_id, policy_step, reward, advantage, components "
    "FROM rollouts ORDER BY trace_id",
    "corpora": "SELECT corpus, trace_id, attempt, prompt, completion, weight "
    "FROM corpora ORDER BY ALL",
    "funnel": "SELECT * FROM funnel ORDER BY ALL",
    "metrics": "SELECT step, name, value FROM metrics WHERE name NOT LIKE '%second%' ORDER BY ALL",
    "models": "SELECT kind, name, model_hash, step FROM models "
    "WHERE parent_hash IS NOT NULL ORDER BY ALL",
    "evaluations": "SELECT model, model_hash, baseline, slice, metric, k, value, low, high "
    "FROM evaluations "
    "ORDER BY ALL",
}

LENGTH = "rewards.length={weight: 1.0, options: {max_tokens: 120, buffer: 120}}"
SMALL = {
    "r1-small": [
        *("vars.base_steps=150", "vars.least=0", "vars.max_tokens=120"),
        # such a base is rarely right, so nothing is filtered
        *(
            "stages.rework.rework.where=null",
            "stages.best.rules=unfiltered",
            "stages.rejection.limit=8",
        ),
        *(
            "stages.harvest.limit=8",
            "stages.harvest.samples=2",
            "stages.rework.limit=1",
            "stages.solutions.limit=32",
        ),
        *("stages.rejection.samples=4", "stages.evaluate.limit=6", "stages.evaluate.samples=2"),
        *("stages.cold-sft.checkpoint.every=1", "stages.sft.checkpoint.every=1"),
        *(
            f"stages.{stage}.{key}"
            for stage in ("reasoning", "r1", "r1-open")
            for key in ("steps=4", "prompts=4", "samples=4", "checkpoint.every=1", LENGTH)
        ),
    ],
}


def letters(frame: pl.DataFrame) -> pl.Series:
    """A reward that differs within a group even for random weights: the share of small
    letters.
    """
    return frame["completion"].str.count_matches("[a-z]") / frame[
        "completion"
    ].str.len_chars().clip(1)


def start(pipeline: str, root: Path, overrides: Sequence[str]) -> subprocess.Popen[str]:
    """`curate run` in its own process group."""
    command = [sys.executable, "-m", "curate.cli", "run", pipeline, "-w", str(root), *overrides]
    here = Path(__file__).parents[1]  # so that the reward in this file can be imported
    return subprocess.Popen(
        command,
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
        cwd=here,
    )


def run_until(
    pipeline: str,
    root: Path,
    overrides: Sequence[str] = (),
    stage: str | None = None,
    after: float = 0.0,
) -> tuple[int, list[str]]:
    """Run, and kill the group `after` seconds into `stage`, at the latest when the next one begins.

    Returns the exit code and the lines on stderr.
    """
    process = start(pipeline, root, overrides)
    assert process.stderr
    assert process.stdout
    lines: list[str] = []
    timer: threading.Timer | None = None
    for line in process.stderr:
        lines.append(line.rstrip())
        begins = BEGINS.match(line.rstrip())
        if begins and timer:
            _kill_group(process)
        if begins and begins[1] == stage:
            timer = threading.Timer(after, _kill_group, [process])
            timer.start()
    process.stdout.read()
    code = process.wait()
    if timer:
        timer.cancel()
    process.stdout.close()
    process.stderr.close()
    return code, lines


def _kill_group(process: subprocess.Popen[str]) -> None:
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)


def stage_seconds(root: Path) -> dict[str, float]:
    """Seconds of each stage from the pipeline's records, in order of finishing."""
    paths = sorted((root / "_runs").glob("*/*.json"), key=lambda path: path.stat().st_mtime)
    return {path.stem.rpartition("-")[0]: json.loads(path.read_text())["seconds"] for path in paths}


def kill_in_every_stage(
    pipeline: str, folder: Path, overrides: Sequence[str] = (), seed: int = 0, say: bool = False
) -> dict[str, int]:
    """A calm run, a kill in every stage, and a last run to the end; returns rows compared by table.

    Raises AssertionError if a run fails, if a stage could not be killed, or if rows
    differ.
    """
    report = print if say else lambda *_, **__: None
    draw = random.Random(seed)
    folder = folder.resolve()
    calm, killed = folder / "calm", folder / "killed"
    began = time.monotonic()
    code, lines = run_until(pipeline, calm, overrides)
    assert code == 0, "\n".join(lines)
    seconds = stage_seconds(calm)
    moved = Warehouse(calm).sql("SELECT count(*) FILTER (advantage <> 0) > 0 FROM rollouts").item()
    assert moved, "no rollout has an advantage: the comparison of the weights would show nothing"
    report(f"undisturbed: {len(seconds)} stages in {time.monotonic() - began:.0f} s", flush=True)
    for stage, took in seconds.items():
        after = _kill_within(pipeline, killed, overrides, stage, draw.uniform(0, took))
        report(f"{stage}: killed, {after:.2f} s into {took:.1f} s", flush=True)
    code, lines = run_until(pipeline, killed, overrides)
    assert code == 0, "\n".join(lines)
    report(*[line for line in lines if TOLD.match(line)], sep="\n", flush=True)
    counts = compare(Warehouse(calm), Warehouse(killed))
    report(f"{len(seconds)} stages killed; the same rows: {counts}", flush=True)
    return counts


def _kill_within(
    pipeline: str, root: Path, overrides: Sequence[str], stage: str, after: float
) -> float:
    """Kill in `stage`; a stage that ends sooner than without kills gets another try, at half the
    time.

    Returns the time that hit. The speed of a machine varies from minute to minute, so after a miss
    the warehouse is restored.
    """
    before = root.with_name(f"{root.name}-before")
    if root.exists():
        shutil.copytree(root, before, symlinks=True)
    for _ in range(8):
        code, lines = run_until(pipeline, root, overrides, stage, after)
        assert code in (0, -signal.SIGKILL), "\n".join(lines)
        begun = [match[1] for line in lines if (match := BEGINS.match(line))]
        if (
            code == -signal.SIGKILL
            and begun[-1] == stage
            and not any(_over(stage, line) for line in lines)
        ):
            shutil.rmtree(before, ignore_errors=True)
            return after
        shutil.rmtree(root, ignore_errors=True)
        if before.exists():
            shutil.copytree(before, root, symlinks=True)
        after /= 2
    raise AssertionError(f"stage {stage} was over before each of 8 kills")


def _over(stage: str, line: str) -> bool:
    """Whether the line is the result of `stage`."""
    return re.match(rf"^\[\d+/\d+\] {re.escape(stage)}: ", line) is not None


def compare(calm: Warehouse, killed: Warehouse) -> dict[str, int]:
    """Count rows by table; AssertionError if they differ, or if a trace occurs twice."""
    counts = {}
    for table, query in QUERIES.items():
        one, other = calm.sql(query), killed.sql(query)
        same = one.equals(other)
        assert same, (
            f"{table}: {one.height} rows undisturbed, {other.height} after "
            f"kills\n{_difference(one, other)}"
        )
        counts[table] = one.height
    assert killed.sql("SELECT count(*) = count(DISTINCT (trace_id, attempt)) FROM traces").item()
    return counts


def _difference(one: pl.DataFrame, other: pl.DataFrame) -> str:
    if one.height != other.height:
        return ""
    columns = [name for name in one.columns if not one[name].equals(other[name])]
    return f"columns that differ: {columns}\n{one.select(columns)}\n{other.select(columns)}"


def main(arguments: Sequence[str]) -> None:
    pipeline, folder, *rest = arguments
    seed = int(rest[rest.index("--seed") + 1]) if "--seed" in rest else 0
    overrides = [argument for argument in rest if "=" in argument]
    kill_in_every_stage(
        pipeline, Path(folder), [*SMALL.get(pipeline, []), *overrides], seed, say=True
    )


if __name__ == "__main__":
    main(sys.argv[1:])
