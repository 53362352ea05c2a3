"""Signals for plain files, without a warehouse: read, measured and written part by part.

annotate_files(["traces.jsonl"], "annotated.parquet", text_column="completion")
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import polars as pl

from curate.errors import UsageError
from curate.files import SUFFIXES, Writer, column_expr, column_names, data_files, read_parts
from curate.memory import DEFAULT, limit_malloc_arenas, text_bytes
from curate.prompts.forms import Form
from curate.signals import annotate_frame, column_groups, derived_columns, with_macros


def annotate_files(
    paths: Sequence[str | Path],
    out: str | Path,
    text_column: str = "completion",
    form: str | None = None,
    groups: Iterable[str] | None = None,
    progress: Callable[[int], None] | None = None,
    memory: str = DEFAULT,
) -> int:
    """Write the input's columns with signals and derived columns; return the number of rows.

    If `out` ends in .parquet or .jsonl it is one file, else a directory with one Parquet file per
    input, where existing files are kept. Without `form` the whole text is reasoning; `r1`,
    `r1-zero` and `plain` name the required tags. The columns `target_language`, `question`,
    `finish_reason` and `prompt` are used if present. `memory` bounds the text held at once. Raises
    `UsageError` for a missing column or one that a signal would overwrite.
    """
    files = data_files(paths)
    chosen = None if groups is None else list(groups)
    limit_malloc_arenas()
    size = text_bytes(memory)
    total = 0
    if Path(out).suffix in SUFFIXES:
        with Writer(out) as writer:
            for path in files:
                for part in read_parts(path, size):
                    writer.write(annotate_part(part, text_column, form, chosen, str(path)))
                    if progress is not None:
                        progress(writer.rows)
            return writer.rows
    if Path(out).suffix and not Path(out).is_dir():
        raise UsageError(f"the output {out} must end in {', '.join(SUFFIXES)}, or be a directory")
    for target, path in _targets(files, Path(out)).items():
        if target.exists():
            continue
        with Writer(target) as writer:
            for part in read_parts(path, size):
                writer.write(annotate_part(part, text_column, form, chosen, str(path)))
                if progress is not None:
                    progress(total + writer.rows)
            total += writer.rows
    return total


def _targets(files: list[Path], out: Path) -> dict[Path, Path]:
    """Map each output file to its input. Inputs of the same name would overwrite each other."""
    targets: dict[Path, Path] = {}
    for path in files:
        target = out / f"{path.stem}.parquet"
        if target in targets:
            raise UsageError(
                f"{path} and {targets[target]} would both become {target}: "
                "annotate them one at a time"
            )
        targets[target] = path
    return targets


def annotate_part(
    part: pl.DataFrame,
    text_column: str,
    form: str | None,
    groups: list[str] | None = None,
    place: str = "the data",
) -> pl.DataFrame:
    """Append the signals to the columns of one part, and with all groups the derived columns."""
    text = column_expr(part.schema, text_column)
    if text is None:
        raise UsageError(
            f"{place} has no column '{text_column}': name the text with --text-column, one of "
            f"{', '.join(column_names(part.schema))}"
        )
    if text[1].is_nested():
        fields = [n for n in column_names(part.schema) if n.startswith(f"{text_column}.")]
        raise UsageError(
            f"{place}: '{text_column}' holds lists or objects, not text: "
            + (f"name a field, one of {', '.join(fields)}" if fields else "give each text its row")
            + ", or bring it in with `curate import`"
        )
    taken = [name for name in (*column_groups(), *derived_columns()) if name in part.columns]
    if taken and not set(column_groups()) <= set(part.columns):
        raise UsageError(
            f"{place} has columns with the names of signals ({', '.join(taken[:5])}): "
            "rename them first; only data with every signal, the output of an earlier annotation, "
            "is annotated again"
        )
    inputs = {"completion": text[0].cast(pl.String)}
    if form is not None:
        inputs["form"] = pl.lit(Form.of(form).name)
    elif "form" in part.columns:
        inputs["form"] = pl.col("form").cast(pl.String)
    for name in ("target_language", "question", "finish_reason", "prompt"):
        if name != text_column and part.schema.get(name) == pl.String:
            inputs[name] = pl.col(name)
    measured = annotate_frame(part.select(**inputs), groups).drop(inputs)
    if groups is None:
        measured = with_macros(measured)
    return part.drop(taken).hstack(measured)
