"""Compare the accuracy of `curate evaluate` and lm-evaluation-harness: one local task, greedy.

    python -m tests.benchmarks.compare_lm_eval MODEL --lm-eval PATH/TO/lm_eval \\
        [--problems 60] [--out FOLDER]

MODEL is a directory in Hugging Face format, for example one that curate wrote. The harness may have
its own environment: `python -m venv lm && lm/bin/pip install 'lm_eval[hf]==0.4.13' torch`. Nothing
is downloaded. Both get the same prompts, stop at `</answer>` or after 96 tokens, and compute in
fp32. An answer is correct for the harness if the integer in the answer tag is the reference (exact
match), and for curate if its verifier of these problems accepts it. Prints every problem that the
two judge differently, and exits with 1 if the accuracies differ.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import polars as pl

TASK = Path(__file__).parents[1] / "evaluate" / "lm_eval_task"
TOKENS = 96


def by_curate(model: str, problems: int, folder: Path) -> pl.DataFrame:
    """Run `curate evaluate`, greedily.

    One row per problem: `problem_id, prompt, completion, reference, verdict, extracted`.
    """
    from curate.config import validate
    from curate.evaluate.job import EvaluateConfig, run
    from curate.job import Context

    sums = {"source": "procedural", "dataset": "chain_sum", "size": problems, "seed": 70_000}
    sums["params"] = {"min_terms": 3, "max_terms": 4, "min_digits": 1, "max_digits": 1}
    config = {
        "models": [{"label": "model", "model": model}],
        "problems": {"sources": [{**sums, "split": "held-out"}]},
        "samples": 1,
        "sampling": {"temperature": 0.0, "top_p": 1.0, "max_tokens": TOKENS, "stop": ["</answer>"]},
        "engine": {"name": "transformers", "dtype": "float32", "max_model_len": 768},
    }
    with Context(folder / "warehouse") as context:
        result = run(validate(EvaluateConfig, config, "compare"), context)
        print(result.facts["table"])
        return context.warehouse.sql(
            "SELECT t.problem_id, t.prompt, t.completion, a.reference, a.verdict, a.extracted, "
            "t.finish_reason FROM traces t JOIN annotated a USING (trace_id) ORDER BY problem_id"
        )


def by_harness(model: str, rows: pl.DataFrame, program: str, folder: Path) -> pl.DataFrame:
    """Run the harness on the same prompts: `problem_id, theirs (text), match (0 or 1)`."""
    documents = rows.select("problem_id", "prompt", answer="reference")
    documents.write_ndjson(folder / "problems.jsonl")
    command = [
        program,
        "run",
        "--model",
        "hf",
        "--tasks",
        "curate_sums",
        "--include_path",
        str(TASK),
    ]
    command += [
        "--model_args",
        f"pretrained={model},dtype=float32",
        "--device",
        "cpu",
        "--batch_size",
        "8",
    ]
    command += ["--log_samples", "--output_path", "harness"]
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HOME": str(folder / "hf")}
    subprocess.run(command, cwd=folder, env=os.environ | offline, check=True)
    samples: list[dict[str, Any]] = []
    for path in (folder / "harness").rglob("samples_curate_sums_*.jsonl"):
        samples += [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return pl.DataFrame(
        [
            {
                "problem_id": s["doc"]["problem_id"],
                "theirs": s["resps"][0][0],
                "match": float(s["exact_match"]),
            }
            for s in samples
        ]
    )


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--lm-eval", default="lm_eval")
    parser.add_argument("--problems", type=int, default=60)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args(arguments)
    if not shutil.which(options.lm_eval):
        print(
            f"no program '{options.lm_eval}': pip install 'lm_eval[hf]==0.4.13', "
            "or name it by --lm-eval"
        )
        return 2
    folder = (options.out or Path(tempfile.mkdtemp(prefix="compare-"))).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    model = str(Path(options.model).resolve())
    ours = by_curate(model, options.problems, folder)
    theirs = by_harness(
        model, ours, str(Path(shutil.which(options.lm_eval) or "").absolute()), folder
    )
    both = ours.join(theirs, on="problem_id", how="inner", validate="1:1").with_columns(
        right=(pl.col("verdict") == "correct").cast(pl.Float64),
        # the harness cuts the stop string off
        same_text=pl.col("completion").str.strip_suffix("</answer>") == pl.col("theirs"),
    )
    assert both.height == ours.height == theirs.height, (both.height, ours.height, theirs.height)
    differ = both.filter(pl.col("right") != pl.col("match"))
    print(f"problems {both.height}, the same text {both['same_text'].sum()}")
    ours_right, theirs_right = int(both["right"].sum()), int(both["match"].sum())
    print(f"right: curate {ours_right}, lm-evaluation-harness {theirs_right}, of {both.height}")
    print(f"problems judged differently: {differ.height}")
    for row in differ.iter_rows(named=True):
        print(json.dumps({k: v for k, v in row.items() if k != "prompt"}, ensure_ascii=False))
    return int(ours_right != theirs_right)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
