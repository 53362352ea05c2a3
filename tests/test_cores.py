"""A process uses the cores assigned to it, not all of the machine."""

from __future__ import annotations

import os

import pytest

from curate import cores as module
from curate.cores import VARIABLE, cores
from curate.errors import UsageError


@pytest.fixture(autouse=True)
def _no_setting(monkeypatch):
    monkeypatch.delenv(VARIABLE, raising=False)


@pytest.mark.parametrize(
    ("quota", "expected"),
    [("max 100000", 8), ("250000 100000", 3), ("50000 100000", 1), ("unreadable", 8)],
)
def test_the_quota_of_a_container_bounds_the_cores(tmp_path, monkeypatch, quota, expected):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)))
    monkeypatch.setattr(module, "QUOTA", tmp_path / "cpu.max")
    (tmp_path / "cpu.max").write_text(quota)
    assert cores() == expected


def test_the_variable_decides_and_must_be_a_number(monkeypatch):
    monkeypatch.setenv(VARIABLE, "3")
    assert cores() == 3
    monkeypatch.setenv(VARIABLE, "0")
    with pytest.raises(UsageError, match="CURATE_CORES=0"):
        cores()


def test_a_verifier_pool_has_as_many_workers(monkeypatch):
    from curate.verify import VerifierPool

    monkeypatch.setenv(VARIABLE, "5")
    with VerifierPool() as pool:
        assert pool.workers == 5
