"""Speed of signals and decisions, beside datatrove's filters. Not collected by pytest; run by hand:

    python tests/benchmarks/bench_signals.py signals --rival /path/to/python-with-datatrove
    python tests/benchmarks/bench_signals.py decide --traces 1000000
    python tests/benchmarks/bench_signals.py memory --traces 1000000
    python tests/benchmarks/bench_signals.py parity --rival /path/to/python-with-datatrove

The documents are chains of thought of about 2 KB: sentences of the labelled sets, shuffled, with sums between them; a
tenth is Chinese. Both sides get the same texts, in memory, once to warm up. The rival's filters run in two processes,
as filters do: until the first rule that rejects. Its Python needs `datatrove==0.10.1`, `regex`, `spacy`, `nltk` and
`tldextract` (and `fasteners`, `fasttext-numpy2-wheel` with a local model for the language filter, which is left out
where they are missing: that favours the rival). CPU time a document is printed beside the rate: on a machine that does
other things too, it is the fairer number.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

DATA = Path(__file__).parents[1] / "signals" / "data"

RIVAL = """
import json, sys, time
from multiprocessing import Pool
from datatrove.data import Document
from datatrove.pipeline.filters import GopherQualityFilter, GopherRepetitionFilter, LanguageFilter

def load(): return [Document(text=json.loads(line), id=str(i)) for i, line in enumerate(open(sys.argv[1]))]
FILTERS = {"repetition": GopherRepetitionFilter, "quality": GopherQualityFilter, "language": LanguageFilter}
DOCS, MADE = load(), {}

def work(job):
    name, half = job
    if name not in MADE:
        MADE[name] = FILTERS[name]()
        for doc in DOCS[:4]: MADE[name].filter(doc)
    started = time.process_time()
    for doc in DOCS[half::2]: MADE[name].filter(doc)
    return time.process_time() - started

if __name__ == "__main__":
    with Pool(2) as pool:
        for name in FILTERS:
            try:
                pool.map(work, [(name, 0), (name, 1)], chunksize=1)
                started = time.monotonic()
                cpu = sum(pool.map(work, [(name, 0), (name, 1)], chunksize=1))
                print(json.dumps({"name": name, "wall": time.monotonic() - started, "cpu": cpu}), flush=True)
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
    found = {}
    for name, parts in (("line", lines), ("paragraph", paragraphs)):
        count, characters = find_duplicates(parts)
        found[f"duplicate_{name}_share"] = count / len(parts)
        found[f"duplicate_{name}_character_share"] = characters / len(text)
    for n in (2, 3, 4):
        grams = get_n_grams(words, n)
        found[f"top_{n}_gram_share"] = find_top_duplicate(grams) / len(text) if grams else 0.0
    for n in (5, 6, 7, 8, 9, 10):
        found[f"duplicate_{n}_gram_share"] = find_all_duplicate(words, n) / len(text)
    found["word_characters"] = sum(map(len, words))
    found["characters"] = len(text)
    print(json.dumps(found))
"""


def documents(count: int, seed: int = 1) -> list[str]:
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


def signals(count: int, rival: str | None) -> None:
    import polars as pl

    from curate.signals import annotate_frame, with_macros

    texts = documents(count)
    size = sum(len(text.encode()) for text in texts) / count
    frame = pl.DataFrame(
        {"completion": [f"<think>{text}</think> <answer>7</answer>" for text in texts]}
    ).with_columns(
        form=pl.lit("r1-zero"),
        finish_reason=pl.lit("stop"),
        question=pl.lit("What is the sum of these numbers?"),
    )
    with_macros(annotate_frame(frame.head(200)))
    print(
        f"{count} documents of {size:.0f} bytes; {pl.thread_pool_size()} threads; load {os.getloadavg()[0]:.1f} before"
    )
    with tempfile.TemporaryDirectory() as folder:
        few = min(count, 600)
        path = Path(folder, "texts.jsonl")
        path.write_text("\n".join(json.dumps(text) for text in texts[:few]), encoding="utf-8")
        # one before, one after: whatever else the machine does meets both
        ours = [_ours(frame)]
        theirs = _theirs(rival, RIVAL, path) if rival else []
        ours.append(_ours(frame))
    wall, cpu = (sum(values) / len(values) / count for values in zip(*ours, strict=True))
    print(
        f"curate, all signals and macros: {1 / wall:,.0f} documents/s, {cpu * 1e6:,.0f} us of CPU a document"
    )
    total = [0.0, 0.0]
    for line in theirs:
        found = json.loads(line)
        if "why" in found:
            print(f"datatrove {found['name']}: not measured ({found['why']})")
            continue
        total = [total[0] + found["wall"] / few, total[1] + found["cpu"] / few]
        _compare(found["name"], found["wall"] / few, found["cpu"] / few, wall, cpu)
    if theirs:
        _compare("all of these", *total, wall, cpu)


def _compare(name: str, their_wall: float, their_cpu: float, wall: float, cpu: float) -> None:
    print(
        f"datatrove {name}, two processes: {1 / their_wall:,.0f} documents/s, {their_cpu * 1e6:,.0f} us of CPU; "
        f"curate is {their_wall / wall:.1f} times as fast by the clock, {their_cpu / cpu:.1f} times by CPU"
    )


def _ours(frame: Any) -> tuple[float, float]:
    """Seconds by the clock, and of CPU in all threads."""
    from curate.signals import annotate_frame, with_macros

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
    """Largest difference of each Gopher share, on texts whose words both sides cut alike."""
    import polars as pl

    from curate.signals import annotate_frame

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
    """Rules, selection and funnel over annotated traces in Parquet, as `curate filter` sees them."""
    import duckdb
    import numpy as np
    import polars as pl

    from curate.filter import apply_rules, load_rules
    from curate.signals import annotate_frame, with_macros

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
                print(
                    f"{name}: {result.kept.height:,} of {count:,} kept in {time.monotonic() - started:.2f} s"
                )


def memory(count: int) -> None:
    """Peak resident memory of annotating `count` traces in a file, in a process of its own."""
    import polars as pl
    import pyarrow.parquet as pq

    texts = pl.DataFrame({"completion": documents(2000)})
    with tempfile.TemporaryDirectory() as folder:
        table = texts.to_arrow()
        for size in (count // 10, count):
            path = Path(folder, f"{size}.parquet")
            with pq.ParquetWriter(path, table.schema) as writer:
                for _ in range(size // 2000):
                    writer.write_table(table)
            script = (
                "import resource, sys; from curate.signals.files import annotate_files; "
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
    parser.add_argument("what", choices=["signals", "parity", "decide", "memory"])
    parser.add_argument("--traces", type=int)
    parser.add_argument("--rival", help="a Python that has datatrove")
    chosen = parser.parse_args()
    if chosen.what == "signals":
        signals(chosen.traces or 6000, chosen.rival)
    elif chosen.what == "parity":
        parity(chosen.traces or 300, chosen.rival or sys.executable)
    elif chosen.what == "decide":
        decide(chosen.traces or 1_000_000)
    else:
        memory(chosen.traces or 100_000)
