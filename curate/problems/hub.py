"""Problems from Hugging Face datasets: a Hub id, a directory that `save_to_disk` wrote, or one
with data files.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl
from pydantic import Field

from curate.errors import UsageError
from curate.extras import need
from curate.problems.files import Mapped


class Hub(Mapped):
    """One data set; `parts` says which of its splits are read, and which of our splits each
    becomes (null: by hash).
    """

    dataset: str = Field(description="Hub id (owner/name) or local directory")
    subset: str | None = Field(
        None, description="configuration of the dataset, e.g. `main` of gsm8k"
    )
    revision: str | None = Field(
        None, description="commit, tag or branch; with a commit the job is reproducible"
    )
    parts: dict[str, str | None] = Field(
        {"train": None},
        min_length=1,
        description="their split: ours, which is train, held-out, or null to draw it by hash",
    )

    def load(self) -> pl.DataFrame:
        frames = []
        for part, ours in self.parts.items():
            where = f"{self.dataset} ({part})"
            table = self._read(part)
            label = self.label or self.dataset.rstrip("/").split("/")[-1]
            frame = self.mapped(table, where, label, range(1, table.height + 1))
            split = pl.coalesce("split", pl.lit(ours, dtype=pl.String)) if ours else pl.col("split")
            frames.append(frame.with_columns(split))
        return pl.concat(frames, how="diagonal_relaxed")

    def _read(self, part: str) -> pl.DataFrame:
        with opened(self.dataset, self.subset, part, self.revision) as data:
            if self.limit:
                data = data.select(range(min(self.limit, len(data))))
            frame = pl.from_arrow(data.with_format("arrow")[:])
        assert isinstance(frame, pl.DataFrame)
        return frame


@contextlib.contextmanager
def opened(
    dataset: str, subset: str | None, part: str, revision: str | None, streaming: bool = False
) -> Iterator[Any]:
    """Open one split of a dataset on the Hub or in a directory; with `streaming` it is read batch
    by batch.

    UsageError names the dataset if it cannot be opened or read.
    """
    need("a Hugging Face dataset", "hub", "datasets")
    import datasets

    try:
        path = Path(dataset).expanduser()
        if (path / "dataset_dict.json").is_file():
            yield datasets.load_from_disk(str(path))[part]
        elif saved(path):
            yield datasets.load_from_disk(str(path))
        else:
            yield datasets.load_dataset(
                dataset, subset, split=part, revision=revision, streaming=streaming
            )
    except Exception as error:  # the library raises a dozen kinds, all for the same reason
        raise UsageError(
            f"cannot load dataset '{dataset}' (subset {subset or 'default'}, split {part}): "
            f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}. "
            "Check its id, subset and split, and the network (HF_TOKEN if it is gated), or "
            "give a local directory"
        ) from error


def saved(path: Path) -> bool:
    """Whether `save_to_disk` wrote this directory."""
    one = (path / "dataset_info.json").is_file() and (path / "state.json").is_file()
    return one or (path / "dataset_dict.json").is_file()
