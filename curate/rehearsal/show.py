"""The result of a rehearsal as text for a person, and as JSON."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from rich.console import Console
from rich.table import Table

from curate.progress import counted, duration
from curate.rehearsal.bill import StageBill
from curate.rehearsal.costs import USABLE, Memory
from curate.rehearsal.job import Rehearsal

GB = 1e9
WIDTH = 200


def text(result: Rehearsal) -> str:
    """The bill as a table, the faults with stage and remedy, and what was not rehearsed."""
    parts = [_table(result), _basis(result)]
    for title, lines in (
        ("Memory per GPU, in GB (the largest of the stages of a model):", _memory(result.bills)),
        ("About the bill:", _notes(result.bills)),
        ("Stood in for:", [f"{what}: {by}" for what, by in result.replaced.items()]),
        (
            "Fed with synthetic traces, since a random model's pass no filter:",
            [", ".join(result.fed)] if result.fed else [],
        ),
        ("Needed by the real run, and not here:", result.needed),
        ("Not rehearsed:", result.open),
        ("Faults:", result.faults),
    ):
        if lines:
            parts.append("\n".join([title, *(f"  {line}" for line in lines)]))
    parts.append(verdict(result))
    return "\n\n".join(parts)


def verdict(result: Rehearsal) -> str:
    """One line: whether the pipeline can run to its end, as far as a rehearsal can tell."""
    seconds = duration(result.seconds)
    if result.faults:
        return f"{counted(len(result.faults), 'fault')} in {result.name}; rehearsed in {seconds}"
    return f"no fault in {result.name}; rehearsed in {seconds}"


def as_json(result: Rehearsal) -> str:
    """The whole result as JSON; memory in bytes per GPU, money in US dollars."""
    bills = []
    for line in result.bills:
        row = asdict(line)
        row["peak"] = line.peak
        bills.append(row)
    content: dict[str, Any] = {
        "pipeline": result.name,
        "gpu": asdict(result.gpu),
        "assumptions": asdict(result.assume),
        "stages": bills,
        "total": total(result),
        "faults": result.faults,
        "replaced": result.replaced,
        "synthetic": result.fed,
        "needed": result.needed,
        "not_rehearsed": result.open,
        "seconds": round(result.seconds, 1),
    }
    return json.dumps(content, indent=1, default=float)


def total(result: Rehearsal) -> dict[str, float]:
    """Sums over the stages; `machine` is the price of all GPUs of the largest stage for the whole
    time, as one rents them.
    """
    bills = result.bills
    gpus = max((line.gpus for line in bills), default=0)
    hours = sum(line.hours for line in bills)
    return {
        "sampled_tokens": sum(line.sampled_tokens for line in bills),
        "trained_tokens": sum(line.trained_tokens for line in bills),
        "flops": sum(line.flops for line in bills),
        "gpu_hours": sum(line.gpu_hours for line in bills),
        "hours": hours,
        "gpus": gpus,
        "money": sum(line.money for line in bills),
        "machine": hours * gpus * result.gpu.price,
        "disk": sum(line.disk for line in bills),
        "peak": max((line.peak for line in bills), default=0.0),
    }


def _table(result: Rehearsal) -> str:
    table = Table(box=None, pad_edge=False, header_style="")
    for name in ("stage", "do"):
        table.add_column(name)
    for name in ("prompt", "sampled", "trained", "FLOPs", "GPUs", "hours", "GPU hours", "GB/GPU",
                 "disk GB", "USD"):  # fmt: skip
        table.add_column(name, justify="right")
    for line in result.bills:
        table.add_row(line.stage, line.do, *_cells(line))
    sums = total(result)
    table.add_row(
        "all", "", "", _count(sums["sampled_tokens"]), _count(sums["trained_tokens"]),
        f"{sums['flops']:.1e}" if sums["flops"] else "", str(int(sums["gpus"]) or ""),
        _figure(sums["hours"]), _figure(sums["gpu_hours"]), _figure(sums["peak"] / GB),
        _figure(sums["disk"] / GB), _money(sums["money"]),
    )  # fmt: skip
    stream = io.StringIO()
    Console(file=stream, width=WIDTH, color_system=None, legacy_windows=False).print(table)
    lines = [line.rstrip() for line in stream.getvalue().rstrip().splitlines()]
    return "\n".join(lines)


def _cells(line: StageBill) -> list[str]:
    if not (line.sampled_tokens or line.trained_tokens):
        return ["", "", "", "", "", "", "", "", _figure(line.disk / GB), ""]
    return [
        _count(line.prompt_tokens),
        _count(line.sampled_tokens),
        _count(line.trained_tokens),
        f"{line.flops:.1e}" if line.flops else "",
        str(line.gpus or ""),
        _figure(line.hours),
        _figure(line.gpu_hours),
        _figure(line.peak / GB),
        _figure(line.disk / GB),
        _money(line.money),
    ]


def _basis(result: Rehearsal) -> str:
    """The assumptions that the figures rest on."""
    gpu, assume, sums = result.gpu, result.assume, total(result)
    bound = assume.length == 1 and assume.kept == 1
    lines = [
        f"On {gpu.name}: {gpu.flops / 1e12:,.0f} TFLOP/s in bf16, {gpu.bandwidth / 1e12:.2f} TB/s, "
        f"{gpu.memory / GB:.0f} GB, {gpu.price:.2f} USD per hour ({gpu.priced}).",
        f"Assumed: completions of {assume.length:g} x max_tokens, {assume.kept:.0%} of the traces "
        f"kept{' (so tokens, hours and money are upper bounds)' if bound else ''}; training at "
        f"{assume.train:g} and prompts at {assume.prefill:g} of the peak, sampling at "
        f"{assume.decode:g} of the bandwidth. FLOPs: 2 per parameter and token forward, 6 for "
        "training. None of it was measured on this GPU.",
    ]
    if sums["gpus"] and sums["machine"] > 1.05 * sums["money"]:
        lines.append(
            f"All {int(sums['gpus'])} GPUs rented for all {_figure(sums['hours'])} hours: "
            f"{_money(sums['machine'])} USD."
        )
    return "\n".join(lines)


def _memory(bills: Sequence[StageBill]) -> list[str]:
    largest: dict[tuple[str, str], tuple[str, Memory]] = {}
    for line in bills:
        for purpose, memory in line.memory.items():
            key = (" and ".join(dict.fromkeys(line.models)), purpose)
            if key not in largest or memory.total > largest[key][1].total:
                largest[key] = (line.stage, memory)
    lines = []
    for (_, purpose), (stage, memory) in largest.items():
        parts = [f"{k} {v / GB:.1f}" for k, v in vars(memory).items() if v > GB / 20]
        lines.append(f"{stage}, {purpose}: {memory.total / GB:.1f} = {' + '.join(parts)}")
    if any("sampling" in line.memory for line in bills):
        lines.append(f"(vLLM fills {USABLE:g} of the memory with as many sequences as fit)")
    return lines


def _notes(bills: Sequence[StageBill]) -> list[str]:
    return [f"stage {line.stage}: {note}" for line in bills for note in dict.fromkeys(line.notes)]


def _count(number: float) -> str:
    """A count with a unit: 43.6 G."""
    for size, unit in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.3g} {unit}"
    return f"{number:.0f}" if number else ""


def _figure(number: float) -> str:
    if not number:
        return ""
    return f"{number:,.0f}" if number >= 100 else f"{number:.1f}" if number >= 0.1 else "<0.1"


def _money(number: float) -> str:
    return f"{number:,.0f}" if number >= 10 else f"{number:.2f}" if number else ""
