"""Speed and memory of deciding, annotating and finding duplicates. Run by hand:

    python tests/benchmarks/bench_filter.py build --out DIR --traces 1000000 [--bytes 2000] [--bare]
    python tests/benchmarks/bench_filter.py decide --warehouse DIR
    python tests/benchmarks/bench_filter.py memory --warehouse DIR [--command filter | annotate]
    python tests/benchmarks/bench_filter.py memory --file texts.parquet
    python tests/benchmarks/bench_filter.py near --traces 100000

`build` makes a whole warehouse with the package's own writer: 16 traces per problem in parts of
10,000, texts of the given size, signals measured on 2,000 different texts, a verdict for each
trace, a judge's verdict for a tenth, and a second attempt for one trace in a hundred. `--bare`
leaves signals and verdicts out, for `annotate`. `decide` times what `curate filter` does before it
writes the corpus: opening the views, rules, selection, funnel. `memory` runs a command in its own
process and prints its peak resident memory. `near` plants duplicates with edited words among
documents and reports how many are found.
"""

from __future__ import annotations

import argparse
import os
import random
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).parent))
from bench_signals import documents

if TYPE_CHECKING:
    import polars as pl

PART = 10_000
SAMPLES = 16
DISTINCT = 2_000


def build(out: Path, count: int, size: int, bare: bool) -> None:
    """A warehouse of `count` traces of about `size` bytes."""
    import polars as pl

    from curate.signals import GROUPS, annotate_frame
    from curate.warehouse import Warehouse

    wh = Warehouse(out)
    texts = pl.DataFrame(
        {
            "completion": [
                f"<think>{text[:size]}</think> <answer>7</answer>" for text in documents(DISTINCT)
            ]
        }
    )
    signals = annotate_frame(
        texts.with_columns(form=pl.lit("r1-zero"), question=pl.lit("What is the sum of these?"))
    )
    problems = pl.DataFrame({"at": pl.int_range(-(-count // SAMPLES), eager=True)})
    key = pl.col("at").hash(7)
    wh.write(
        "problems",
        "made",
        problems.select(
            problem_id=_hex("at", 1),
            source=pl.lit("source-") + (key % 5).cast(pl.String),
            domain=pl.lit("math"),
            question=pl.lit("What is the sum of these numbers? No. ")
            + pl.col("at").cast(pl.String),
            reference=pl.lit("7"),
            verifier=pl.lit("math"),
            difficulty=(pl.col("at").hash(8) % 1000) / 1000,
            split=pl.lit("train"),
        ),
        key=count,
    )
    traces = wh.version("traces", "made", "v1")
    groups = {
        g: wh.version("signals", f"{g}@{GROUPS[g].version}", "made.v1", parents=[traces.ref])
        for g in GROUPS
    }
    verdicts = wh.version("verdicts", "math@1", "made.v1", parents=[traces.ref])
    judged = wh.version("verdicts", "judge@1", "made.v1", parents=[traces.ref])
    for number, first in enumerate(range(0, count, PART)):
        rows = _rows(first, min(PART, count - first), texts)
        name = f"{number:05d}"
        traces.publish(name, rows.drop("text_at"))
        if bare:
            continue
        measured = pl.concat(
            [rows.select("trace_id", "attempt"), signals[rows["text_at"]].select(_signal_names())],
            how="horizontal",
        )
        for group, version in groups.items():
            version.publish(name, measured.select("trace_id", "attempt", *GROUPS[group].columns))
        right = pl.col("trace_id").hash(3) % 2 == 0
        judgements = rows.select(
            "trace_id",
            "attempt",
            verifier=pl.lit("math"),
            verifier_version=pl.lit("1"),
            kind=pl.lit("rule"),
            verdict=pl.when(right).then(pl.lit("correct")).otherwise(pl.lit("wrong")),
            extracted=pl.lit("7"),
        )
        verdicts.publish(name, judgements)
        few = judgements.filter(pl.col("trace_id").hash(4) % 10 == 0)
        judged.publish(name, few.with_columns(verifier=pl.lit("judge"), kind=pl.lit("judge")))
    for version in (traces, *([] if bare else [*groups.values(), verdicts, judged])):
        version.seal()
    mean = texts["completion"].str.len_bytes().mean()
    print(f"{out}: {count:,} traces of {mean:.0f} bytes in {number + 1} parts")


def _signal_names() -> list[str]:
    from curate.signals import column_groups

    return list(column_groups())


def _hex(column: str, seed: int) -> pl.Expr:
    """32 hexadecimal digits, as ids of traces and problems are."""
    import polars as pl

    at = pl.col(column)
    digits = [(at.hash(seed + i) % 0xFFFFFFFF).cast(pl.UInt32) for i in range(4)]
    return pl.concat_str([d.map_batches(_as_hex, return_dtype=pl.String) for d in digits])


def _as_hex(values: pl.Series) -> pl.Series:
    import polars as pl

    return pl.Series([f"{v:08x}" for v in values], dtype=pl.String)


def _rows(first: int, count: int, texts: pl.DataFrame) -> pl.DataFrame:
    """Traces `first` to `first + count`; one in a hundred is a second attempt of the one before."""
    import polars as pl

    at = pl.DataFrame({"at": pl.int_range(first, first + count, eager=True)})
    redo = (pl.col("at") % 100 == 99) & (pl.col("at") > first)
    at = at.with_columns(
        attempt=redo.cast(pl.Int32), own=pl.when(redo).then(pl.col("at") - 1).otherwise("at")
    )
    at = at.with_columns(
        problem=pl.col("own") // SAMPLES,
        text_at=(pl.col("own").hash(5) % texts.height).cast(pl.UInt32),
    )
    return at.select(
        "attempt", "text_at",
        trace_id=_hex("own", 11),
        problem_id=_hex("problem", 1),
        sample_index=(pl.col("own") % SAMPLES).cast(pl.Int32),
        recipe=pl.lit("rejection"), form=pl.lit("r1-zero"), template=pl.lit("r1-zero@510bbb634c97"),
        model=pl.lit("made"), model_hash=pl.lit("made"), engine=pl.lit("stub"),
        finish_reason=pl.lit("stop"), completion_tokens=pl.lit(500), max_tokens=pl.lit(1024),
    ).with_columns(
        completion=texts["completion"].gather(at["text_at"]),
        reasoning=texts["completion"].gather(at["text_at"]).str.extract(r"(?s)<think>(.*)</think>"),
        answer=pl.lit("7"),
    )  # fmt: skip


def decide(warehouse: Path) -> None:
    """Times of rules, selection and funnel; each opens the views, and the first run is cold."""
    from curate.filter import apply_rules, load_rules
    from curate.filter.job import bounded, unread
    from curate.warehouse import Warehouse
    from curate.warehouse.slices import Slices
    from curate.warehouse.sql import connect

    print(f"load {os.getloadavg()[0]:.1f} before; {os.cpu_count()} cores")
    for name in ("unfiltered", "cold-start", "rejection"):
        times = []
        cpu = time.process_time()
        for _ in range(3):
            started = time.monotonic()
            rules = load_rules(name)
            with (
                connect(Warehouse(warehouse).root, unread(rules, None), views=False) as connection,
                bounded(connection, "2GB", warehouse),
            ):
                slices = Slices(connection, Warehouse(warehouse).root, unread(rules, None))
                result = apply_rules(connection, rules, slices=slices)
            times.append(time.monotonic() - started)
        shown = ", ".join(f"{t:.2f}" for t in times)
        cpu = (time.process_time() - cpu) / 3
        kept, total, _ = result.counts()
        print(
            f"{name}: {kept:,} of {total:,} kept; seconds: {shown}; {cpu:.1f} s of CPU each",
            flush=True,
        )
    print(f"peak {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024:,} MiB")


PEAK = """
import resource, sys
from curate.cli import main
sys.argv = ["curate", *sys.argv[1:]]
try:
    main()
finally:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    print("peak", peak, "MiB", file=sys.stderr)
"""


def memory(arguments: list[str]) -> None:
    """Peak resident memory of one `curate` command, with its output."""
    started = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", PEAK, *arguments], capture_output=True, text=True, check=False
    )
    peak = [line for line in done.stderr.splitlines() if line.startswith("peak")]
    print(f"curate {' '.join(arguments)}: {' '.join(peak)}, {time.monotonic() - started:.1f} s")
    print(
        "\n".join(
            [
                *done.stdout.splitlines()[-3:],
                *(done.stderr.splitlines()[-4:] if done.returncode else []),
            ]
        )
    )


def near(count: int) -> None:
    """Throughput on `count` documents, and recall of planted duplicates with edited words."""
    import polars as pl

    from curate.filter.duplicates import duplicates, signatures

    rng = random.Random(5)
    vocabulary = " ".join(documents(200)).split()
    planted = count // 20
    texts = [
        " ".join(rng.choice(vocabulary) for _ in range(rng.randint(150, 400)))
        for _ in range(count - planted)
    ]
    edits = (0.0, 0.02, 0.05, 0.10)
    kinds = []
    for i in range(planted):
        words = texts[i].split()
        share = edits[i % len(edits)]
        for at in rng.sample(range(len(words)), round(share * len(words))):
            words[at] = rng.choice(vocabulary)
        texts.append(" ".join(words))
        kinds.append(share)
    started, cpu = time.monotonic(), time.process_time()
    for threshold in (0.8, 0.5):
        started, cpu = time.monotonic(), time.process_time()
        series = pl.Series(texts)
        matches = duplicates(signatures(series), series.gather, None, threshold)
        clock, cpu = time.monotonic() - started, time.process_time() - cpu
        caught = matches["original"].gather(range(count - planted, count)) == pl.Series(
            range(planted)
        )
        recall = (
            pl.DataFrame({"edited": kinds, "caught": caught})
            .group_by("edited")
            .agg(pl.col("caught").mean())
            .sort("edited")
        )
        shown = ", ".join(f"{share:.0%}: {hit:.3f}" for share, hit in recall.iter_rows())
        false = matches.head(count - planted)["kind"].is_not_null().sum()
        print(
            f"{count:,} documents, threshold {threshold}: {count / clock:,.0f} documents/s "
            f"({cpu:.0f} s of CPU); "
            f"found by share of words edited: {shown}; {false} others called duplicates"
        )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=["build", "decide", "memory", "near"])
    parser.add_argument("--traces", type=int, default=1_000_000)
    parser.add_argument("--bytes", type=int, default=2_000)
    parser.add_argument("--bare", action="store_true")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--warehouse", type=Path)
    parser.add_argument("--file", type=Path)
    parser.add_argument("--command", choices=["filter", "annotate"], default="filter")
    chosen: Any = parser.parse_args()
    if chosen.what == "build":
        build(chosen.out, chosen.traces, chosen.bytes, chosen.bare)
    elif chosen.what == "decide":
        decide(chosen.warehouse)
    elif chosen.what == "near":
        near(chosen.traces)
    elif chosen.file:
        memory(["annotate", str(chosen.file), "--out", str(chosen.file) + ".out.parquet"])
    elif chosen.command == "filter":
        memory(["filter", "cold-start", "-w", str(chosen.warehouse)])
    else:
        memory(["annotate", "verify=false", "-w", str(chosen.warehouse)])


if __name__ == "__main__":
    main()
