"""Training runs by name: as a person types them, and as the tables know them."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from curate.errors import UsageError
from curate.warehouse.store import Warehouse


class Run(NamedTuple):
    """A run with rollouts: its id, and the dataset that holds them."""

    run_id: str
    dataset: str


def run_named(warehouse: Warehouse, name: str, where: str) -> Run:
    """Return a run by its id, the beginning of one, a model's directory or a name.

    The name of a training means its newest run. UsageError, which begins with `where`, if none or
    several match.
    """
    exists = warehouse.exists()
    query = "SELECT DISTINCT run_id FROM rollouts ORDER BY run_id"
    ids: list[str] = warehouse.sql(query)["run_id"].to_list() if exists else []
    matching = [run_id for run_id in ids if run_id.startswith(name)]
    matching = matching or [part for part in Path(name).parts if part in ids]
    if not matching:
        versions = warehouse.versions("rollouts", name) if exists else []
        matching = [v.version for v in versions if v.version in ids][-1:]
    if len(matching) != 1:
        what = "no run" if not matching else f"{len(matching)} runs"
        raise UsageError(
            f"{where}: {what} called '{name}' with rollouts in {warehouse.root}; runs: "
            f"{', '.join(ids[:8]) or 'none'} (`curate sql 'SELECT DISTINCT run_id FROM rollouts'`)"
        )
    # The directory stays where it was when its parts are merged into larger ones.
    directory = next((warehouse.root / "rollouts").glob(f"*/{matching[0]}"), None)
    if directory is None:
        raise UsageError(f"{where}: the rollouts of run {matching[0]} are not in {warehouse.root}")
    return Run(matching[0], directory.parent.name)
