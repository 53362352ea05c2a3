"""Metrics reach a tracker, and a missing tracker is named."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from curate.errors import UsageError
from curate.train.trackers import Trackers


def test_metrics_reach_wandb_and_trackio(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Any] = []

    def fake(name: str) -> SimpleNamespace:
        tracker = SimpleNamespace(
            log=lambda metrics, step: calls.append((name, step, metrics)),
            finish=lambda: calls.append((name, "end")),
        )
        tracker.init = lambda **options: (
            calls.append((name, options["project"], options["resume"])) or tracker
        )
        return tracker

    for name in ("wandb", "trackio"):
        monkeypatch.setitem(sys.modules, name, fake(name))
    trackers = Trackers(["wandb", "trackio"], "run", "abc", tmp_path, {"lr": 1})
    trackers.log(3, {"reward": 0.5})
    trackers.close()
    for name in ("wandb", "trackio"):
        assert [c[1:] for c in calls if c[0] == name] == [
            ("curate", "allow"),
            (3, {"reward": 0.5}),
            ("end",),
        ]


def test_metrics_reach_tensorboard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Any] = []

    def writer(folder: str) -> SimpleNamespace:
        calls.append(folder)
        return SimpleNamespace(
            add_scalar=lambda *scalar: calls.append(scalar), close=lambda: calls.append("end")
        )

    monkeypatch.setitem(
        sys.modules, "torch.utils.tensorboard", SimpleNamespace(SummaryWriter=writer)
    )
    trackers = Trackers(["tensorboard"], "run", "abc", tmp_path, {})
    trackers.log(3, {"reward": 0.5})
    trackers.close()
    assert calls == [str(tmp_path / "tensorboard"), ("reward", 0.5, 3), "end"]


def test_a_tracker_that_is_not_installed_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UsageError, match="wandb is not installed: pip install wandb"):
        Trackers(["wandb"], "run", "abc", tmp_path, {})
