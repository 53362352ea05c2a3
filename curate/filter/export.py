"""A sealed corpus in the formats of other trainers, with a card that documents its origin.

messages           {"messages": [{"role", "content"}, …]}
prompt-completion  {"prompt", "completion"}, texts as the model sees them
conversational     {"prompt": [message, …], "completion": [message]}
sharegpt           {"conversations": [{"from": "human" | "gpt", "value"}, …]}
preference         {"prompt": [message, …], "chosen": [message], "rejected": [message]}: pairs
preference-one     the same with one message instead of a list
prompts            {"prompt": [message, …], "reference", "verifier", …}: one row per problem, for RL
verl               {"data_source", "prompt": [message], "ability", "reward_model", …}: the same

Each row also has its origin: `trace_id`, `problem_id` and the newest verdict of the problem's own
verifier (in `extra_info` for verl). `--for TRAINER` adds a config (trainers.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import polars as pl

from curate.atomic import SUFFIX as PARTIAL
from curate.atomic import is_abandoned, write_whole
from curate.errors import CurateError, UsageError, did_you_mean
from curate.extras import need
from curate.files import SUFFIXES, Writer
from curate.filter.dataset_card import card
from curate.filter.pairs import pairs
from curate.filter.trainers import CONFIG_FILES, TRAINERS, Job, prepare, training_section
from curate.store import is_remote
from curate.store.paths import scan
from curate.warehouse.parts import verify

if TYPE_CHECKING:
    from curate.warehouse import Version, Warehouse

ORIGIN = ("trace_id", "problem_id", "verdict")


def _messages(rows: pl.DataFrame) -> pl.DataFrame:
    return rows.select("messages", *ORIGIN)


def _prompt_completion(rows: pl.DataFrame) -> pl.DataFrame:
    return rows.select("prompt", "completion", *ORIGIN)


def _conversational(rows: pl.DataFrame) -> pl.DataFrame:
    turns = pl.col("messages")
    return rows.select(
        prompt=turns.list.head(turns.list.len() - 1), completion=turns.list.tail(1)
    ).hstack(rows.select(ORIGIN))


def _sharegpt(rows: pl.DataFrame) -> pl.DataFrame:
    turn = pl.element()
    speaker = turn.struct.field("role").replace_strict(
        {"user": "human", "assistant": "gpt"}, default="system"
    )
    turns = pl.col("messages").list.eval(
        pl.struct(speaker.alias("from"), turn.struct.field("content").alias("value"))
    )
    return rows.select(turns.alias("conversations"), *ORIGIN)


def _preference(rows: pl.DataFrame) -> pl.DataFrame:
    frame = _preference_one(rows)
    lists = [pl.concat_list(name).alias(name) for name in ("chosen", "rejected")]
    return frame.with_columns(lists)


def _preference_one(rows: pl.DataFrame) -> pl.DataFrame:
    turns = pl.col("messages")
    rejected = pl.struct(pl.lit("assistant").alias("role"), pl.col("rejected").alias("content"))
    return rows.select(
        turns.list.head(turns.list.len() - 1).alias("prompt"),
        turns.list.last().alias("chosen"),
        rejected.alias("rejected"),
        *ORIGIN,
        "rejected_trace_id",
        pl.lit("wrong").alias("rejected_verdict"),
    )


def _requests() -> pl.Expr:
    """Turns before the completion."""
    turns = pl.col("messages")
    answered = turns.list.last().struct.field("role") == "assistant"
    return pl.when(answered).then(turns.list.head(turns.list.len() - 1)).otherwise(turns)


def _prompts(rows: pl.DataFrame) -> pl.DataFrame:
    judged = ("reference", "verifier", "choices", "tests", "metadata")
    label = pl.struct(judged).struct.json_encode()
    return rows.select(_requests().alias("prompt"), *judged, label.alias("label"), "problem_id")


def _verl(rows: pl.DataFrame) -> pl.DataFrame:
    judged = ("verifier", "choices", "tests", "metadata")
    return rows.select(
        data_source=pl.col("source"),
        prompt=_requests(),
        ability=pl.col("domain").fill_null("unknown"),
        reward_model=pl.struct(
            pl.lit("rule").alias("style"), pl.col("reference").alias("ground_truth")
        ),
        extra_info=pl.struct(*ORIGIN, "split", *judged),
    )


@dataclass(frozen=True)
class Format:
    """Format of a corpus's rows. `by_problem`: one row per problem, with the columns that judge it.
    `paired`: with a wrong trace. `traces`: needs completions, which a corpus of prompts lacks.
    """

    shape: Callable[[pl.DataFrame], pl.DataFrame]
    by_problem: bool = False
    paired: bool = False
    traces: bool = True


FORMATS: dict[str, Format] = {
    "messages": Format(_messages, traces=False),
    "prompt-completion": Format(_prompt_completion),
    "conversational": Format(_conversational),
    "sharegpt": Format(_sharegpt),
    "preference": Format(_preference, paired=True),
    "preference-one": Format(_preference_one, paired=True),
    "prompts": Format(_prompts, by_problem=True, traces=False),
    "verl": Format(_verl, by_problem=True, traces=False),
}


def export_corpus(
    warehouse: Warehouse,
    corpus: str,
    out: str | Path,
    format: str = "messages",
    suffix: str = ".parquet",
    push: str | None = None,
    *,
    trainer: str | None = None,
    model: str | None = None,
    license: str | None = None,
) -> int:
    """Write a corpus (`name` or `name@version`) with its card; returns its rows.

    `out` that ends in .parquet or .jsonl is one file, with the card next to it (`x.jsonl`, `x.md`).
    Any other is a folder with `data/train-00000.parquet`, … (or .jsonl, as `suffix` says) and
    `README.md`, as on the Hub. `trainer` adds a config of another trainer, which starts from
    `model` (by default the one that the corpus was sampled from), and chooses the format; with
    `format="preference"` it trains on pairs. `push` names a data set on the Hugging Face Hub
    (owner/name); both need a folder. The token comes from the environment. Raises `UsageError` for
    an unknown corpus, format or trainer, and for a folder with other content.
    """
    _check_names(format, suffix, trainer)
    version = warehouse.latest("corpora", corpus)
    verify(version.parts())  # before an older export is touched
    target = Path(out)
    if is_remote(target):
        raise UsageError(f"--out {out}: a corpus is exported to this machine: name a folder here")
    one_file = target.suffix in SUFFIXES and not target.is_dir()
    if one_file and (push is not None or trainer is not None):
        option = "--push sends" if push is not None else "--for writes"
        raise UsageError(f"{option} a folder: give --out a folder instead of {target}")
    configs: dict[str, str] = {}
    training: list[str] = []
    if trainer is not None:
        task = "dpo" if FORMATS[format].paired else _kind(version)
        job = Job(version.dataset, task, model or _sampled_model(warehouse, version), suffix)
        chosen, configs = prepare(trainer, job)
        format, training = chosen.formats[task], training_section(trainer, job)
    if FORMATS[format].traces and _kind(version) == "rl":
        raise UsageError(
            f"{version.ref} holds prompts only (kind: rl): export it as prompts, verl or messages"
        )
    if one_file:
        with Writer(target) as writer:
            for rows in _rows(warehouse, version, format):
                writer.write(rows)
        text = card(warehouse, version, format, target.name, license, rows=writer.rows)
        write_whole(target.with_suffix(".md"), text)
        return writer.rows
    _check_folder(target)
    total = _write_folder(target, _rows(warehouse, version, format), suffix)
    text = card(warehouse, version, format, "data/train-*", license, training, total)
    write_whole(target / "README.md", text)
    for name, content in configs.items():
        write_whole(target / name, content)
    if push is not None:
        _push(target, push)
    return total


def _check_names(format: str, suffix: str, trainer: str | None) -> None:
    if format not in FORMATS:
        hint = did_you_mean(format, FORMATS)
        raise UsageError(f"unknown format '{format}': choose from {', '.join(FORMATS)}{hint}")
    if suffix not in (".parquet", ".jsonl"):
        raise UsageError(f"unknown kind of file '{suffix}': choose .parquet or .jsonl")
    if trainer is not None and trainer not in TRAINERS:
        hint = did_you_mean(trainer, TRAINERS)
        raise UsageError(f"unknown trainer '{trainer}': choose from {', '.join(TRAINERS)}{hint}")


def _check_folder(target: Path) -> None:
    if target.suffix in (".json", ".csv", ".txt"):
        raise UsageError(f"{target} cannot be written: use .parquet or .jsonl, or name a folder")
    for partial in [*target.glob(f".*{PARTIAL}"), *target.glob(f"data/.*{PARTIAL}")]:
        if is_abandoned(partial):  # of an export that was killed
            partial.unlink(missing_ok=True)
    own = ("data", "README.md", *CONFIG_FILES)
    if target.exists() and (
        not target.is_dir() or any(path.name not in own for path in target.iterdir())
    ):
        raise UsageError(f"{target} has other content: export into a new folder")


def _write_folder(target: Path, parts: Iterator[pl.DataFrame], suffix: str) -> int:
    """Write the parts as files of the Hub's names; returns the number of rows. Files of an earlier
    export go.
    """
    for stale in [*(target / "data").glob("train-*"), *(target / name for name in CONFIG_FILES)]:
        stale.unlink(missing_ok=True)
    total = 0
    for number, rows in enumerate(parts):
        with Writer(target / "data" / f"train-{number:05d}{suffix}") as writer:
            writer.write(rows)
        total += rows.height
    return total


def _kind(version: Version) -> str:
    """Kind of a corpus's rule set: `sft` or `rl`."""
    rule_set = (version.manifest.get("config") or {}).get("rule_set") or {}
    return str(rule_set.get("kind", "sft"))


def _sampled_model(warehouse: Warehouse, version: Version) -> str:
    """The model that the corpus was sampled from. UsageError unless there is exactly one."""
    rows = warehouse.sql(
        "SELECT DISTINCT m.path FROM ancestry a "
        "JOIN models m ON a.ancestor = 'model:' || m.model_hash "
        "WHERE a.ref = ? AND a.depth <= 2",
        [version.ref],
    )
    if len(rows) != 1:
        raise UsageError(
            f"--for: say with --model which model is trained; {version.ref} is of "
            f"{'several' if len(rows) else 'no model in the warehouse'}"
        )
    path = str(rows.item())
    inside = warehouse.root / path
    return str(inside) if inside.is_dir() else path


def _rows(warehouse: Warehouse, version: Version, format: str) -> Iterator[pl.DataFrame]:
    """The corpus in the shape of a format, part by part."""
    chosen = FORMATS[format]
    parts = (
        pairs(warehouse, version)
        if chosen.paired
        else (scan([path]).collect() for path in version.parts())
    )
    verdicts = _verdicts(warehouse, version)
    problems = None
    if chosen.by_problem:
        problems = warehouse.sql(
            "SELECT problem_id, reference, verifier, split, choices, tests, metadata FROM problems"
        )
    seen: set[str] = set()
    for rows in parts:
        rows = rows.join(verdicts, on=["trace_id", "attempt"], how="left", maintain_order="left")
        if problems is not None:
            rows = rows.unique("problem_id", keep="first", maintain_order=True)
            rows = rows.filter(~pl.col("problem_id").is_in(list(seen)))
            seen.update(rows["problem_id"])
            rows = rows.join(problems, on="problem_id", how="left", maintain_order="left")
        yield chosen.shape(rows)


def _verdicts(warehouse: Warehouse, version: Version) -> pl.DataFrame:
    """trace_id, attempt and verdict of the corpus's traces that were judged."""
    ids = version.read(["trace_id", "attempt"]).collect().drop_nulls()
    judged = warehouse.sql(
        "SELECT trace_id, attempt, verdict FROM last_verdicts WHERE verdict IS NOT NULL"
    )
    return judged.join(ids, on=["trace_id", "attempt"], how="semi")


def _push(folder: Path, name: str) -> None:
    need("--push", "hub", "huggingface_hub")
    from huggingface_hub import HfApi

    try:
        api = HfApi()
        api.create_repo(name, repo_type="dataset", exist_ok=True)
        api.upload_folder(folder_path=str(folder), repo_id=name, repo_type="dataset")
    except Exception as error:  # network, rights, names: the library's errors say which
        raise CurateError(f"{folder} could not be pushed to {name}: {error}") from error
