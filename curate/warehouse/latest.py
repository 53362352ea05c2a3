"""`latest/<corpus>`: a path to the newest version of each corpus, for readers of plain files.

    datasets.load_dataset("parquet", data_files="warehouse/latest/cold-start/*.parquet")

It is a relative link, so it survives a move of the warehouse, and it lies outside every glob over a
table. In SQL the view `latest_corpora` has the same rows.
"""

from __future__ import annotations

import os
from pathlib import Path

from curate.atomic import is_inside, unique_name
from curate.progress import say
from curate.warehouse.store import Warehouse

FOLDER = "latest"


def link_latest(warehouse: Warehouse, corpus: str) -> Path | None:
    """Point the link of a corpus to its newest version. None, with a message, where the file system
    has no links.
    """
    version = warehouse.latest("corpora", corpus)
    folder = warehouse.root / FOLDER
    link, staged = folder / version.dataset, folder / f".{unique_name()}"
    if not is_inside(folder, warehouse.root):  # in a warehouse that somebody prepared
        return None
    try:
        folder.mkdir(exist_ok=True)
        os.symlink(os.path.relpath(version.path, folder), staged)
        os.replace(staged, link)
    except OSError as error:
        say(f"  {link} was not made ({error.strerror}): read {version.path}")
        return None
    return link
