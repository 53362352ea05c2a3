"""Scaling of a job over the workers of a cluster, and the cost of object storage.

    python -m tests.benchmarks.bench_cluster scale [--workers 1 2 4] [--rows 960] [--slow 0.1]
    python -m tests.benchmarks.bench_cluster claims
    python -m tests.benchmarks.bench_cluster store
    POLARS_MAX_THREADS=1 python -m tests.benchmarks.bench_cluster costs

`scale` starts a raylet per worker on this machine and samples with the stub engine, whose
requests sleep, so the figures show what the job layer costs and not how fast an engine is.
Efficiency is the time that the requests sleep, divided by workers and by the time between the first
and the last row. `costs`: milliseconds of one core per trace of 10 KB.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

CHUNK = 8


def job(folder: Path, rows: int, slow: float) -> dict[str, Any]:
    """The config of a job over sums."""
    model = folder / "model"
    model.mkdir(parents=True)
    (model / "config.json").write_text("{}")
    (model / "model.safetensors").write_bytes(b"weights")
    lines = [
        json.dumps({"question": f"What is {a} + {b}?", "reference": str(a + b)})
        for a in range(1, 9)
        for b in range(1, 6)
    ]
    (folder / "sums.jsonl").write_text("\n".join(lines))
    return {
        "model": str(model),
        "engine": {"name": "stub", "args": {"slow": slow, "at_once": 1}},
        "problems": {
            "sources": [
                {"source": "files", "path": str(folder / "sums.jsonl"), "verifier": "math"}
            ],
            "held_out": 0,
        },
        "samples": rows // 40,
        "chunk": CHUNK,
        "live": False,
        "sampling": {"max_tokens": 256},
    }


def scale(workers: list[int], rows: int, slow: float) -> None:
    """Print seconds and efficiency for each number of workers."""
    from curate import api
    from curate.warehouse import Warehouse
    from tests.cluster.nodes import nodes

    print("| workers | rows | seconds between first and last row | efficiency | whole command |")
    print("|---|---|---|---|---|")
    with nodes(max(workers)) as cluster, tempfile.TemporaryDirectory() as folder:
        for count in workers:
            root = Path(folder) / f"wh{count}"
            config = job(Path(folder) / f"job{count}", rows, slow)
            spread = {"ray": cluster.address, "workers": count}
            began = time.monotonic()
            api.generate("r1-zero", warehouse=root, cluster=spread, **config)
            whole = time.monotonic() - began
            first, last, total = (
                Warehouse(root)
                .sql("SELECT epoch(min(created_at)), epoch(max(created_at)), count(*) FROM traces")
                .row(0)
            )
            busy = last - first + slow
            efficiency = total * slow / count / busy
            print(f"| {count} | {total} | {busy:.1f} | {efficiency:.2f} | {whole:.1f} s |")


def claims() -> None:
    """Print the time of taking and releasing a claim at the desk."""
    import ray

    from curate.cluster.desk import Desk, DeskClaims
    from tests.cluster.nodes import nodes

    with nodes(1) as cluster:
        ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
        desk = ray.remote(Desk).options(num_cpus=0).remote()
        ours = DeskClaims(lambda name, *a: ray.get(getattr(desk, name).remote(*a)), "bench")
        times = timed(lambda: ours.take(uuid.uuid4().hex).release(done=True), 300)  # type: ignore[union-attr]
        print(f"take and release: {shown(times)}")
        ray.shutdown()


def store() -> None:
    """Print latencies of what a job asks of a store, on a disk and on two servers on loopback."""
    from curate.store import open_store, parse_root, roots
    from tests.store.servers import environment, localbucket, make_bucket, moto

    with tempfile.TemporaryDirectory() as folder:
        print("| store | part of 640 KB | batch of 20 KB | has | list of 90 |")
        print("|---|---|---|---|---|")
        row("disk", open_store(parse_root(folder)))
        buckets = Path(folder) / "buckets"
        for name, server in (("moto", moto()), ("localbucket", localbucket(buckets))):
            buckets.mkdir(exist_ok=True)
            with server as endpoint:
                make_bucket(endpoint, "bench")
                os.environ.update(environment(endpoint))
                roots._bucket.cache_clear()
                row(name, open_store(parse_root("s3://bench/wh")))


WORDS = (
    "we first compute the sum of both sides and then check that the result holds because each step "
    "follows from the one before so the value must be even wait let us verify again with another "
    "number suppose that n is odd hence it cannot divide the product which means our answer was "
    "right after all the remaining cases are similar and give nothing new"
).split()


def costs(count: int = 2000) -> None:
    """Print what the maps over traces cost."""
    import io
    import random

    import polars as pl

    from curate.filter.duplicates import signatures
    from curate.signals import annotate_frame

    luck = random.Random(0)
    texts = []
    for _ in range(count):
        lines = [
            " ".join(luck.choices(WORDS, k=18)) + f" {luck.randrange(999)}." for _ in range(90)
        ]
        text = "\n".join(lines)
        texts.append(f"<think>{text}</think><answer>{luck.randrange(999)}</answer>")
    frame = pl.DataFrame(
        {
            "trace_id": [str(n) for n in range(count)],
            "attempt": 0,
            "prompt": "What is it?",
            "completion": texts,
            "reasoning": texts,
            "answer": "1",
            "form": "r1-zero",
            "finish_reason": "stop",
            "question": "What is it?",
            "target_language": "en",
        }
    )
    written = io.BytesIO()
    frame.write_parquet(written)
    steps = {
        "signals": lambda: annotate_frame(frame),
        "MinHash signatures": lambda: signatures(frame["completion"]),
        "writing Parquet": lambda: frame.write_parquet(io.BytesIO()),
        "reading Parquet": lambda: pl.read_parquet(io.BytesIO(written.getvalue())),
    }
    print(f"{sum(map(len, texts)) / count / 1000:.1f} KB per trace")
    for name, step in steps.items():
        best = min(timed(step, 3))
        print(f"{name}: {best / count:.3f} ms per trace")


def row(name: str, opened: Any) -> None:
    part, batch = os.urandom(640_000), os.urandom(20_000)
    root = getattr(opened, "root", None)
    if root is not None:
        (root / "p").mkdir(parents=True)
    parts = timed(lambda: opened.put_if_absent(f"p/{uuid.uuid4().hex}", part), 90)
    batches = timed(lambda: opened.put(f"b/{uuid.uuid4().hex}", batch), 60)
    queried = timed(lambda: opened.has("p/none"), 60)
    listed = timed(lambda: opened.list("p"), 20)
    print(f"| {name} | {' | '.join(map(shown, (parts, batches, queried, listed)))} |")


def timed(call: Callable[[], Any], times: int) -> list[float]:
    """Milliseconds of each call."""
    result = []
    for _ in range(times):
        began = time.perf_counter()
        call()
        result.append(1000 * (time.perf_counter() - began))
    return result


def shown(times: list[float]) -> str:
    ordered = sorted(times)
    return f"{statistics.median(ordered):.1f} ({ordered[int(0.95 * len(ordered))]:.1f}) ms"


def main() -> None:
    parser = argparse.ArgumentParser(description="Benchmarks of clusters and stores.")
    parser.add_argument("what", choices=["scale", "claims", "store", "costs"])
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--rows", type=int, default=960)
    parser.add_argument("--slow", type=float, default=0.1)
    options = parser.parse_args()
    if options.what == "scale":
        scale(options.workers, options.rows, options.slow)
    else:
        {"claims": claims, "store": store, "costs": costs}[options.what]()


if __name__ == "__main__":
    main()
