"""Speed of signals and decisions, compared with datatrove's filters. Not collected by pytest:

    python tests/benchmarks/bench_signals.py signals --rival /path/to/python-with-datatrove
    python tests/benchmarks/bench_signals.py decide --traces 1000000
    python tests/benchmarks/bench_signals.py memory --traces 1000000
    python tests/benchmarks/bench_signals.py parity --rival /path/to/python-with-datatrove

    python tests/benchmarks/bench_signals.py against --tree /path/to/a/worktree

The documents are chains of thought of about 2 KB: shuffled sentences of the labelled sets with sums
between them; a tenth is Chinese. Both sides get the same texts in memory, after a warm-up. The
rival's filters run in two processes, each until its first rule rejects. Its Python needs
`datatrove==0.10.1`, `regex`, `spacy`, `nltk` and `tldextract`. Its language filter also needs
`fasteners`, `fasttext-numpy2-wheel` and a local model; it is skipped if they are missing, which
favours the rival. CPU time per document is printed next to the rate: it is the fairer figure on a
busy machine.

`against` alternates between this tree and another (a git worktree of an earlier commit), each in
its own process that sees the same texts, and compares the CPU time per document.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import duckdb
import numpy as np
import polars as pl
import pyarrow.parquet as pq

from curate.filter import apply_rules, load_rules
from curate.signals import annotate_frame, with_macros

DATA = Path(__file__).parents[1] / "signals" / "data"

RIVAL = """
import json, sys, time
from multiprocessing import Pool
from datatrove.data import Document
from datatrove.pipeline.filters import GopherQualityFilter, GopherRepetitionFilter, LanguageFilter

def load():
    return [Document(text=json.loads(t), id=str(i)) for i, t in enumerate(open(sys.argv[1]))]

FILTERS = {
    "repetition": GopherRepetitionFilter,
    "quality": GopherQualityFilter,
    "language": LanguageFilter,
}
DOCS, OPEN = load(), {}

def work(job):
    name, half = job
    if name not in OPEN:
        OPEN[name] = FILTERS[name]()
        for doc in DOCS[:4]: OPEN[name].filter(doc)
    started = time.process_time()
    for doc in DOCS[half::2]: OPEN[name].filter(doc)
    return time.process_time() - started

if __name__ == "__main__":
    with Pool(2) as pool:
        for name in FILTERS:
            try:
                pool.map(work, [(name, 0), (name, 1)], chunksize=1)
                started = time.monotonic()
                cpu = sum(pool.map(work, [(name, 0), (name, 1)], chunksize=1))
                wall = time.monotonic() - started
                print(json.dumps({"name": name, "wall": wall, "cpu": cpu}), flush=True)
            except Exception as error:
                print(json.dumps({"name": name, "why": str(error)[:100]}), flush=True)
"""

PARITY = """
import json, re, sys
from datatrove.pipeline.filters.gopher_repetition_filter import (
    find_all_duplicate, find_duplicates, find_top_duplicate, get_n_grams)
for line in open(sys.argv[1]):
    text = json.loads(line)
    words = re.findall(r"\\\\w+", text)
    lines, paragraphs = re.split(r"\\\\n+", text), re.split(r"\\\\n{2,}", text.strip())
    shares = {}
    for name, parts in (("line", lines), ("paragraph", paragraphs)):
        count, characters = find_duplicates(parts)
        shares[f"duplicate_{name}_share"] = count / len(parts)
        shares[f"duplicate_{name}_character_share"] = characters / len(text)
    for n in (2, 3, 4):
        grams = get_n_grams(words, n)
        shares[f"top_{n}_gram_share"] = find_top_duplicate(grams) / len(text) if grams else 0.0
    for n in (5, 6, 7, 8, 9, 10):
        shares[f"duplicate_{n}_gram_share"] = find_all_duplicate(words, n) / len(text)
    shares["word_characters"] = sum(map(len, words))
    shares["characters"] = len(text)
    print(json.dumps(shares))
"""


# Prints the CPU seconds of one pass per line of standard input, so that two trees can take turns.
PASSES = """
import json, sys, time
import polars as pl
from curate.signals import annotate_frame, with_macros

frame = pl.read_ndjson(sys.argv[1])
with_macros(annotate_frame(frame.head(200)))
print("ready", flush=True)
for _ in sys.stdin:
    started = time.process_time()
    with_macros(annotate_frame(frame))
    print(time.process_time() - started, flush=True)
"""


def documents(count: int, seed: int = 1) -> list[str]:
    """Chains of thought of about 2 KB, every tenth in Chinese."""
    rng = random.Random(seed)
    cases = [
        json.loads(line)
        for line in (DATA / "languages.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    cases += [
        json.loads(line)
        for line in (DATA / "languages_heldout.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    pure = [c for c in cases if not c["mixed"]]
    whole = {
        code: ["".join(t for _, t in c["parts"]) for c in pure if c["parts"][0][0] == code]
        for code in ("en", "zh")
    }
    words = " ".join(whole["en"]).split()

    def one(i: int) -> str:
        pool, size = (whole["zh"], 700) if i % 10 == 0 else (whole["en"], 2000)
        text = ""
        while len(text) < size:
            a, b = rng.randint(1, 99), rng.randint(1, 99)
            text += rng.choice(pool) + rng.choice([" ", "\n", "\n\n", f" So {a} + {b} = {a + b}. "])
            if i % 10 and rng.random() < 0.5:
                text += " ".join(rng.choice(words) for _ in range(14)) + ". "
        return text

    return [one(i) for i in range(count)]


def traces(texts: list[str]) -> pl.DataFrame:
    """`texts` as R1-Zero traces, with the columns that signals read."""
    return pl.DataFrame(
        {"completion": [f"<think>{text}</think> <answer>7</answer>" for text in texts]}
    ).with_columns(
        form=pl.lit("r1-zero"),
        finish_reason=pl.lit("stop"),
        question=pl.lit("What is the sum of these numbers?"),
    )


def signals(count: int, rival: str | None) -> None:
    """All signals and macros, alone or next to datatrove."""
    texts = documents(count)
    size = sum(len(text.encode()) for text in texts) / count
    frame = traces(texts)
    with_macros(annotate_frame(frame.head(200)))
    print(
        f"{count} documents of {size:.0f} bytes; {pl.thread_pool_size()} threads; "
        f"load {os.getloadavg()[0]:.1f} before"
    )
    with tempfile.TemporaryDirectory() as folder:
        few = min(count, 600)
        path = Path(folder, "texts.jsonl")
        path.write_text("\n".join(json.dumps(text) for text in texts[:few]), encoding="utf-8")
        # One pass before and one after, so that other load affects both sides.
        ours = [_ours(frame)]
        theirs = _theirs(rival, RIVAL, path) if rival else []
        ours.append(_ours(frame))
    wall, cpu = (sum(values) / len(values) / count for values in zip(*ours, strict=True))
    print(
        f"curate, all signals and macros: {1 / wall:,.0f} documents/s, "
        f"{cpu * 1e6:,.0f} us of CPU per document"
    )
    total = [0.0, 0.0]
    for line in theirs:
        timing = json.loads(line)
        if "why" in timing:
            print(f"datatrove {timing['name']}: not measured ({timing['why']})")
            continue
        total = [total[0] + timing["wall"] / few, total[1] + timing["cpu"] / few]
        _compare(timing["name"], timing["wall"] / few, timing["cpu"] / few, wall, cpu)
    if theirs:
        _compare("all of these", *total, wall, cpu)


def against(count: int, tree: str) -> None:
    """CPU time per document of this tree and of another, taking turns over the same texts."""
    here = str(Path(__file__).parents[2])
    ratios, seconds = [], {here: [], tree: []}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "traces.jsonl")
        traces(documents(count)).write_ndjson(path)
        workers = {
            root: subprocess.Popen(
                [sys.executable, "-c", PASSES, str(path)],
                cwd=root,
                env={**os.environ, "PYTHONPATH": root},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            for root in (here, tree)
        }
        for worker in workers.values():
            assert worker.stdout is not None
            worker.stdout.readline()
        for _ in range(7):
            for root, worker in workers.items():
                assert worker.stdin is not None
                assert worker.stdout is not None
                worker.stdin.write("pass\n")
                worker.stdin.flush()
                seconds[root].append(float(worker.stdout.readline()))
            ratios.append(seconds[here][-1] / seconds[tree][-1])
        for worker in workers.values():
            worker.communicate()
    for root, passes in seconds.items():
        print(f"{root}: {min(passes) / count * 1e6:,.0f} us of CPU per document (best of 7)")
    print(f"this tree takes {statistics.median(ratios):.2f} times the CPU (median of 7 pairs)")


def _compare(name: str, their_wall: float, their_cpu: float, wall: float, cpu: float) -> None:
    print(
        f"datatrove {name}, two processes: {1 / their_wall:,.0f} documents/s, "
        f"{their_cpu * 1e6:,.0f} us of CPU; curate is {their_wall / wall:.1f} times as fast by the "
        f"clock, {their_cpu / cpu:.1f} times by CPU"
    )


def _ours(frame: pl.DataFrame) -> tuple[float, float]:
    """Seconds by the clock, and of CPU in all threads."""
    clock, cpu = time.monotonic(), time.process_time()
    with_macros(annotate_frame(frame))
    return time.monotonic() - clock, time.process_time() - cpu


def _theirs(python: str, script: str, path: Path) -> list[str]:
    with tempfile.NamedTemporaryFile("w", suffix=".py", delete=False) as file:
        file.write(script)
    try:
        done = subprocess.run(
            [python, file.name, str(path)], capture_output=True, text=True, timeout=550, check=False
        )
    finally:
        os.unlink(file.name)
    if done.returncode:
        sys.exit(done.stderr[-2000:])
    return done.stdout.splitlines()


def parity(count: int, rival: str) -> None:
    """Largest difference of each Gopher share, on texts that both sides split into equal words."""
    rng = random.Random(2)
    letters = [c if c.isascii() and c.isalpha() else " " for c in " ".join(documents(40, seed=3))]
    words = "".join(letters).lower().split()
    texts = []
    for _ in range(count):
        lines = [
            " ".join(rng.choice(words[:200]) for _ in range(rng.randint(3, 12)))
            for _ in range(rng.randint(2, 12))
        ]
        lines += rng.choices(lines, k=rng.randint(0, 8))
        texts.append("\n".join(lines[:6]) + "\n\n" + "\n".join(lines[6:] or ["end"]))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "texts.jsonl")
        path.write_text("\n".join(json.dumps(text) for text in texts), encoding="utf-8")
        theirs = pl.DataFrame(
            [json.loads(line) for line in _theirs(rival, PARITY.replace("\\\\", "\\"), path)]
        )
    ours = annotate_frame(pl.DataFrame({"completion": texts}), ["repetition"])
    for name in theirs.columns:
        if name in ours.columns:
            off = (ours[name] - theirs[name]).abs()
            print(f"{name:38} mean {theirs[name].mean():.4f}  largest difference {off.max():.6f}")


def decide(count: int) -> None:
    """Rules, selection and funnel over annotated traces in Parquet, as in `curate filter`."""
    few = with_macros(
        annotate_frame(
            pl.DataFrame({"completion": documents(2000)}).with_columns(form=pl.lit("plain"))
        )
    )
    rng = np.random.default_rng(0)
    at = pl.Series(rng.integers(0, few.height, count))
    frame = (
        few.drop("completion", "form")
        .select(pl.all().gather(at))
        .with_columns(
            trace_id=pl.int_range(count).cast(pl.String).str.zfill(32),
            attempt=pl.lit(0, pl.Int32),
            problem_id="p" + (pl.int_range(count) // 16).cast(pl.String),
            source=pl.Series(rng.choice(["a", "b", "c"], count)),
            domain=pl.lit("math"),
            recipe=pl.lit("rejection"),
            difficulty=pl.Series(rng.random(count)),
            verdict=pl.Series(rng.choice(["correct", "wrong"], count)),
            judge_verdict=pl.lit(None, pl.String),
            error=pl.lit(None, pl.String),
            finish_reason=pl.lit("stop"),
            quality=pl.Series(rng.random(count)),
        )
    )
    with tempfile.TemporaryDirectory() as folder:
        frame.write_parquet(f"{folder}/annotated.parquet", row_group_size=20_000)
        with duckdb.connect() as con:
            con.sql(
                f"CREATE VIEW annotated AS SELECT * FROM read_parquet('{folder}/annotated.parquet')"
            )
            for name in ("cold-start", "rejection", "unfiltered"):
                started = time.monotonic()
                result = apply_rules(con, load_rules(name))
                seconds = time.monotonic() - started
                print(f"{name}: {result.kept.height:,} of {count:,} kept in {seconds:.2f} s")


def memory(count: int) -> None:
    """Peak resident memory of annotating `count` traces in a file, measured in its own process."""
    texts = pl.DataFrame({"completion": documents(2000)})
    with tempfile.TemporaryDirectory() as folder:
        table = texts.to_arrow()
        for size in (count // 10, count):
            path = Path(folder, f"{size}.parquet")
            with pq.ParquetWriter(path, table.schema) as writer:
                for _ in range(size // 2000):
                    writer.write_table(table)
            script = (
                "import resource, sys; from curate.signals.plain_files import annotate_files; "
                f"n = annotate_files([{str(path)!r}], {str(path) + '.out.parquet'!r}); "
                "print(n, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)"
            )
            started = time.monotonic()
            done = subprocess.run(
                [sys.executable, "-c", script], capture_output=True, text=True, check=True
            )
            rows, peak = done.stdout.split()
            rate = int(rows) / (time.monotonic() - started)
            print(f"{int(rows):,} traces: peak {int(peak):,} MiB, {rate:,.0f} traces/s")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=["signals", "parity", "decide", "memory", "against"])
    parser.add_argument("--traces", type=int)
    parser.add_argument("--rival", help="a Python that has datatrove")
    parser.add_argument("--tree", help="a worktree of another commit, for `against`")
    chosen = parser.parse_args()
    if chosen.what == "signals":
        signals(chosen.traces or 6000, chosen.rival)
    elif chosen.what == "against":
        if not chosen.tree:
            parser.error("against needs --tree")
        against(chosen.traces or 3000, chosen.tree)
    elif chosen.what == "parity":
        parity(chosen.traces or 300, chosen.rival or sys.executable)
    elif chosen.what == "decide":
        decide(chosen.traces or 1_000_000)
    else:
        memory(chosen.traces or 100_000)
