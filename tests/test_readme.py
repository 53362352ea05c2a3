"""The examples of the README run as they are printed, in an empty folder with a problem file and a
model.

What stands in for something slow or absent: `path/to/model` is a tiny model of random weights. The
samples of `mine.yaml` come from the stub engine, four per problem; the training steps are real.
GRPO does one round of four samples, and `api.run("mine.yaml")` finds the stages done. The
quickstart, the recipes and commands with a model of your own are planned, not run; the first two
run in other tests, one step per stage.
"""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from typer.main import get_command

from curate.cli import app
from curate.engines.testing.tiny import make_tiny_model
from curate.filter.rules import load_rules
from curate.generate import get_recipe
from curate.train.job import RUNS

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", README, flags=re.S | re.M)
COMMANDS = [
    line.partition("  #")[0].strip()
    for line in README.splitlines()
    if re.match(r"    (curate|duckdb) ", line)
]
pytestmark = pytest.mark.timeout(900)
STUB = ["engine.name=stub", "engine.args.right=0.8", "stages.harvest.samples=4"]


def block(language: str, beginning: str) -> str:
    """The code block that begins with this text."""
    texts = [text for name, text in BLOCKS if name == language and text.startswith(beginning)]
    assert len(texts) == 1, f"{beginning!r} begins {len(texts)} blocks"
    return texts[0]


def run(arguments: list[str], folder: Path, stdin: str = "") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "curate.cli", *arguments]
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=folder, timeout=600, input=stdin
    )
    assert done.returncode == 0, f"{shlex.join(arguments)}\n{done.stderr}"
    return done


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the README's user, after `curate run mine.yaml`."""
    folder = tmp_path_factory.mktemp("readme")
    (folder / "mine.yaml").write_text(block("yaml", "# mine.yaml"))
    (folder / "mine.py").write_text(block("python", "# mine.py"))
    sums = [
        {"prompt": f"What is {a} + {b}?", "answer": str(a + b)} for a in range(5) for b in range(5)
    ]
    (folder / "problems.jsonl").write_text("".join(json.dumps(row) + "\n" for row in sums))
    make_tiny_model(folder / "path" / "to" / "model", seed=1, max_len=4096)
    run(["run", "mine.yaml", *STUB], folder)
    return folder


@pytest.mark.slow
def test_the_pipeline_of_your_own_runs_and_then_has_nothing_to_do(folder: Path) -> None:
    again = run(["run", "mine.yaml", *STUB], folder)
    assert "nothing to do: 6 stages done before" in again.stderr
    assert "before" in again.stdout
    assert "after" in again.stdout


@pytest.mark.slow
def test_a_reward_next_to_the_config_is_used(folder: Path) -> None:
    (folder / "rl.yaml").write_text(
        (folder / "mine.yaml").read_text() + block("yaml", "# one more stage")
    )
    small = ["steps=1", "prompts=2", "samples=2", "sampling.max_tokens=8"]
    engine = ["engine.name=transformers", "engine.dtype=float32"]
    # The other stages keep the stub engine, and so are done.
    overrides = [f"stages.rl.{item}" for item in [*small, *engine]]
    run(["run", "rl.yaml", *STUB, *overrides], folder)
    query = 'select sum(components."mine:short") > 0 as paid from rollouts'
    assert "true" in run(["sql", "-f", "csv", query], folder).stdout


# Commands that are planned instead of run: they need a model or hours.
PLANNED = ("curate run quickstart", "curate run r1-zero-small")


@pytest.mark.slow
@pytest.mark.parametrize("command", [c for c in COMMANDS if c.startswith("curate ")])
def test_a_printed_command_runs(folder: Path, command: str) -> None:
    trace = run(["sql", "-f", "csv", "select trace_id from traces limit 1"], folder).stdout.split()[
        1
    ]
    arguments = [trace if part == "TRACE_ID" else part for part in shlex.split(command)[1:]]
    if command.startswith("curate run mine.yaml"):
        arguments[2:2] = STUB
    if command.startswith(PLANNED):
        arguments.append("--plan")
    done = run(arguments, folder)
    assert done.stdout or done.stderr


def test_every_command_of_the_readme_is_tested() -> None:
    assert len(COMMANDS) >= 14
    assert {c.split()[1] for c in COMMANDS if c.startswith("curate ")} >= {
        "run", "sql", "show", "filter", "lineage", "export"
    }  # fmt: skip


@pytest.mark.slow
def test_the_python_examples_run(folder: Path) -> None:
    if find_spec("datasets") is None:
        pytest.skip("datasets is not installed")
    run(["export", "rejection", "--out", "data"], folder)
    # `api.run` gets the engine of the pipeline above, so that it finds the stages done.
    text = block("python", "from curate import api").replace(
        '"mine.yaml")', f'"mine.yaml", *{STUB!r})'
    )
    text += block("python", "import datasets")
    command = [sys.executable, "-c", text]
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder, timeout=280)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_the_queries_for_other_clients_run(folder: Path) -> None:
    duckdb = pytest.importorskip("duckdb")
    for query in [c for c in COMMANDS if c.startswith("duckdb -c")]:
        sql = shlex.split(query)[2].replace("'warehouse", f"'{folder}/warehouse")
        assert duckdb.sql(sql).fetchall()[0][0] > 0
    with duckdb.connect(str(folder / "warehouse" / "warehouse.duckdb"), read_only=True) as views:
        assert views.sql("SELECT count(*) FROM annotated").fetchall()[0][0] > 0


TABLE = re.findall(r"^\| [\w ]+ \| (`curate .*?`(?:, `curate .*?`)*) \|", README, flags=re.M)


def test_every_command_of_the_table_exists() -> None:
    """Names of commands, recipes and rule sets; what they do is tested above and elsewhere."""
    commands = set(get_command(app).commands)  # type: ignore[attr-defined]
    seen = set()
    for cell in TABLE:
        for text in re.findall(r"`(curate [^`]+)`", cell):
            _, name, *rest = text.replace("\\|", " ").split()
            assert name in commands, text
            seen.add(name)
            names = [word for word in rest if word.islower() and not word.startswith("-")]
            checks = {"generate": get_recipe, "filter": load_rules, "train": RUNS.__getitem__}
            for word in names if name in checks else []:
                assert checks[name](word)
    assert seen >= commands - {"version"}
