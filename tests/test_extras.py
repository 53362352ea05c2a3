"""On a bare install every command that needs an extra names it in one line."""

from __future__ import annotations

import json
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from curate.extras import DISTRIBUTION, EXTRAS

ROOT = Path(__file__).parents[1]
SOURCE = "problems={sources: [{source: files, path: sums.jsonl, verifier: math}]}"
LIMITED = ["samples=1", "limit=1", "sampling.max_tokens=8"]
COMMANDS = {
    "generate": (["generate", "r1-zero", "model={model}", SOURCE, *LIMITED], "train"),
    "generate transformers": (
        ["generate", "r1-zero", "model={model}", SOURCE, "engine.name=transformers", *LIMITED],
        "train",
    ),
    "generate vllm": (
        ["generate", "r1-zero", "model={model}", SOURCE, "engine.name=vllm", *LIMITED], "vllm",
    ),
    "generate openai": (
        ["generate", "r1-zero", "model=m", SOURCE, "engine.name=openai",
         "engine.args.base_url=http://127.0.0.1:9/v1", *LIMITED],
        "openai",
    ),
    "generate hub": (["generate", "r1-zero", "model=owner/name", SOURCE, *LIMITED], "train"),
    "problems procedural": (
        ["problems", "load", "source=procedural", "dataset=chain_sum", "size=3"], "quickstart",
    ),
    "problems hub": (["problems", "load", "source=hub", "dataset=owner/name"], "hub"),
    "import": (["import", "owner/name"], "hub"),
    "annotate": (["annotate", "judge.model={model}", "-w", "wh"], "train"),
    "train sft": (["train", "sft", "model={model}", "corpus=all", "-w", "wh"], "train"),
    "train sft --dry-run": (
        ["train", "sft", "model={model}", "corpus=all", "--dry-run", "-w", "wh"], None,
    ),
    "train grpo": (["train", "grpo", "model={model}", SOURCE], "train"),
    "train grpo --dry-run": (["train", "grpo", "model={model}", SOURCE, "--dry-run"], "train"),
    "train distill": (
        ["train", "distill", "model={model}", "teacher={model}", "corpus=all", "-w", "wh"], "train",
    ),
    "evaluate": (["evaluate", "{model}", SOURCE, "split=train", "limit=1", "-k", "1"], "train"),
    "run": (["run", "quickstart", "--plan"], "quickstart"),
    "export --push": (["export", "all", "--out", "out", "--push", "a/b", "-w", "wh"], "hub"),
}  # fmt: skip

RUN = """
import contextlib, io, json, sys
for name in json.loads(sys.argv[1]): sys.modules[name] = None
from curate.cli import main
results = {}
for name, arguments in json.loads(sys.argv[2]).items():
    out, err = io.StringIO(), io.StringIO()
    sys.argv = ["curate", *arguments]
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try: main()
        except SystemExit as end: code = end.code
        except BaseException as error: code = repr(error)
    results[name] = [code, out.getvalue(), err.getvalue()]
print(json.dumps(results))
"""


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[object]]:
    """Exit code, stdout and stderr of each command where no package of an extra is installed."""
    folder = tmp_path_factory.mktemp("bare")
    rows = [{"question": f"What is {a} + 1?", "reference": str(a + 1)} for a in range(5)]
    (folder / "sums.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    traces = [{"question": "1 + 1?", "answer": "2", "completion": "<think> a </think> 3"}]
    (folder / "traces.jsonl").write_text("".join(json.dumps(row) + "\n" for row in traces))
    model = folder / "model"
    model.mkdir()
    (model / "config.json").write_text("{}")
    (model / "model.safetensors").write_bytes(b"weights")
    prepared = {
        "a": ["import", "traces.jsonl", "verifier=math", "columns.reference=answer", "-w", "wh"],
        "b": ["annotate", "-w", "wh"],
        "c": ["filter", "unfiltered", "corpus=all", "-w", "wh"],
    }
    commands = {
        **prepared,
        **{
            name: [part.replace("{model}", str(model)) for part in arguments]
            for name, (arguments, _) in COMMANDS.items()
        },
    }
    command = [sys.executable, "-c", RUN, json.dumps(list(EXTRAS)), json.dumps(commands)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder, timeout=240)
    assert done.returncode == 0, done.stderr
    printed: dict[str, list[object]] = json.loads(done.stdout)
    for name in prepared:
        assert printed[name][0] in (0, None), printed[name]
    return printed


@pytest.mark.parametrize("name", list(COMMANDS))
def test_a_bare_install_names_the_missing_extra(
    results: dict[str, list[object]], name: str
) -> None:
    code, out, err = results[name]
    extra = COMMANDS[name][1]
    if extra is None:
        assert code == 0, err
        return
    assert code in (1, 2), (code, out, err)
    assert "Traceback" not in str(err)
    assert f"pip install '{DISTRIBUTION}[{extra}]'" in str(err)
    if name != "run":
        last = str(err).strip().splitlines()[-1]
        assert f"{DISTRIBUTION}[{extra}]" in last
        assert last.startswith("error: ")


def test_the_distribution_and_its_extras_are_those_of_the_project() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["name"] == DISTRIBUTION
    assert set(EXTRAS.values()) <= set(project["optional-dependencies"])
    assert list(project["scripts"]) == ["curate"]
