"""Files and directories are whole or absent, even after a kill during writing."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from curate import atomic
from curate.errors import CurateError


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_is_replaced_whole_and_no_other_file_remains(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "result.json"
    atomic.write_whole(target, "first")
    atomic.write_whole(target, b"second")
    assert target.read_text() == "second"
    assert names(target.parent) == ["result.json"]


def test_without_overwrite_the_first_writer_wins(tmp_path: Path) -> None:
    target = tmp_path / "plan.json"
    atomic.write_whole(target, "first", overwrite=False)
    with pytest.raises(FileExistsError):
        atomic.write_whole(target, "second", overwrite=False)
    assert target.read_text() == "first"
    assert names(tmp_path) == ["plan.json"]


def test_a_block_that_raises_leaves_the_old_file_and_no_temporary_one(tmp_path: Path) -> None:
    target = tmp_path / "report.html"
    target.write_text("old")

    def write_half() -> None:
        with atomic.whole_file(target) as staged:
            staged.write_text("half")
            raise ValueError("stop")

    with pytest.raises(ValueError, match="stop"):
        write_half()
    assert target.read_text() == "old"
    assert names(tmp_path) == ["report.html"]


@pytest.mark.parametrize("exchange", [True, False])
def test_a_directory_is_replaced_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exchange: bool
) -> None:
    if not exchange:  # a platform without renameat2
        monkeypatch.setattr(atomic, "exchange", lambda *_: False)
    target = tmp_path / "model"
    for number in (1, 2):
        with atomic.whole_directory(target) as staged:
            (staged / f"weights-{number}").write_text(str(number))
    assert names(target) == ["weights-2"]
    assert names(tmp_path) == ["model"]


@pytest.mark.parametrize(
    ("code", "message"),
    [
        (errno.ENOSPC, "is full"),
        (errno.EDQUOT, "is full"),
        (errno.EROFS, "cannot write to"),
        (errno.EMFILE, "too many open files"),
    ],
)
def test_faults_of_a_disk_give_one_message(tmp_path: Path, code: int, message: str) -> None:
    with pytest.raises(CurateError, match=message), atomic.disk_errors(tmp_path):
        raise OSError(code, os.strerror(code))


def test_only_files_of_dead_processes_are_abandoned(tmp_path: Path) -> None:
    target = tmp_path / "step-000001"
    mine = atomic.temporary_path(target)
    mine.write_text("x")
    code = f"from curate import atomic; print(atomic.temporary_path(atomic.Path({str(target)!r})))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    dead = Path(run.stdout.strip())
    dead.write_text("x")
    running = tmp_path / f".step-000001.{atomic.machine()}-{os.getppid()}-0a0a0a0a.partial"
    running.write_text("x")
    assert not atomic.is_abandoned(mine)
    assert not atomic.is_abandoned(running)
    assert atomic.is_abandoned(dead)


def test_a_process_of_another_machine_is_judged_by_age_and_never_by_its_pid(tmp_path: Path) -> None:
    foreign = tmp_path / ".model.0123456789ab-1-0a0a0a0a.partial"
    foreign.write_text("x")
    assert not atomic.is_abandoned(foreign)
    os.utime(foreign, (1, 1))
    assert atomic.is_abandoned(foreign)


def test_a_process_id_namespace_counts_as_a_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    here = atomic.machine.__wrapped__()
    monkeypatch.setattr(atomic.os, "readlink", lambda _: "pid:[1]")
    assert atomic.machine.__wrapped__() != here
