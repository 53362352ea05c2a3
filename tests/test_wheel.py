"""A wheel holds schemas, pipelines and queries; its warehouse is ./warehouse."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.mark.slow
def test_a_wheel_finds_its_schemas_pipelines_and_queries(tmp_path):
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "-q",
        "--no-deps",
        "-w",
        str(tmp_path),
        str(ROOT),
    ]
    built = subprocess.run(command, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    (wheel,) = tmp_path.glob("curate_reasoning-*.whl")
    site = tmp_path / "site"
    zipfile.ZipFile(wheel).extractall(site)
    assert (site / "curate" / "py.typed").is_file()
    code = (
        "import curate, pathlib\n"
        "from curate.warehouse import Warehouse, schemas\n"
        "from curate.pipeline.config import load_pipeline\n"
        "from curate.filter.rules import load_rules\n"
        "from curate.console.query import saved_query\n"
        f"assert curate.__file__.startswith({str(site)!r}), curate.__file__\n"
        f"assert str(schemas.data_dir('schemas')).startswith({str(site)!r})\n"
        "wh = Warehouse().create()\n"
        "assert wh.sql('SELECT count(*) FROM annotated').item() == 0\n"
        "load_pipeline('quickstart'); load_rules('cold-start')\n"
        "saved_query(pathlib.Path('recipes'))\n"
        "from curate.prompts.render import load_template; load_template('r1-zero')\n"
    )
    work = tmp_path / "work"
    work.mkdir()
    environment = {**os.environ, "PYTHONPATH": str(site)}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=work, env=environment
    )
    assert done.returncode == 0, done.stderr
    assert (work / "warehouse" / "traces").is_dir()
