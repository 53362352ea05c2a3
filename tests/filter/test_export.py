"""Exports record the origin of each row, form pairs for DPO, and write trainers' configs."""

from __future__ import annotations

import json
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import yaml

from curate import api
from curate.errors import CurateError, UsageError
from curate.filter.export import FORMATS, export_corpus
from curate.filter.trainers import TRAINERS
from curate.verify.trainers import accuracy_reward, compute_score, reward_func
from curate.warehouse import Warehouse


@pytest.fixture(scope="module")
def wh(tmp_path_factory: pytest.TempPathFactory) -> Warehouse:
    """Twelve sums with six stub samples each, right and wrong; corpora `best` and `prompts`."""
    folder = tmp_path_factory.mktemp("export")
    rows = [
        {"question": f"What is {a} + {b}?", "reference": str(a + b), "target_language": "en"}
        for a in range(1, 7)
        for b in range(1, 3)
    ]
    (folder / "sums.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    model = folder / "stub-model"
    model.mkdir()
    (model / "config.json").write_text("{}")
    (model / "model.safetensors").write_bytes(b"weights")
    source = {"source": "files", "path": str(folder / "sums.jsonl"), "verifier": "math"}
    place = folder / "wh"
    name = api.problems("sums", sources=[source], held_out=0, warehouse=place)
    api.generate(
        "r1-zero", model=str(model), problems=name, samples=6, engine={"name": "stub"},
        warehouse=place,
    )  # fmt: skip
    api.annotate(warehouse=place)
    api.filter("rejection", corpus="best", warehouse=place)
    rules = folder / "prompts.yaml"
    rules.write_text("kind: rl\nrules: []\n")
    api.filter(str(rules), corpus="prompts", warehouse=place)
    return Warehouse(place)


def read(folder: Path) -> pl.DataFrame:
    return pl.read_parquet(folder / "data" / "*.parquet")


@pytest.mark.parametrize("format", ["messages", "prompt-completion", "conversational", "sharegpt"])
def test_every_row_names_its_origin(wh: Warehouse, tmp_path: Path, format: str) -> None:
    count = export_corpus(wh, "best", tmp_path / "out", format)
    rows = read(tmp_path / "out")
    kept = wh.latest("corpora", "best").read().collect()
    assert count == len(rows) == len(kept) > 0
    assert rows.select("trace_id", "problem_id").equals(kept.select("trace_id", "problem_id"))
    assert set(rows["verdict"]) == {"correct"}


def test_pairs_are_a_right_and_a_wrong_trace_of_one_problem(wh: Warehouse, tmp_path: Path) -> None:
    count = export_corpus(wh, "best", tmp_path / "out", "preference")
    rows = read(tmp_path / "out")
    assert count == len(rows) > 10
    traces = wh.sql("SELECT trace_id, problem_id, verdict, completion FROM annotated")
    rejected = rows.join(traces, left_on="rejected_trace_id", right_on="trace_id", suffix="_of")
    assert (rejected["problem_id"] == rejected["problem_id_of"]).all()
    assert set(rejected["verdict_of"]) == {"wrong"}
    first = rejected.row(0, named=True)
    assert first["rejected"][0]["content"] == first["completion"].strip()
    assert first["chosen"][0]["content"].startswith("<think>")
    assert [turn["role"] for turn in first["prompt"]] == ["user"]
    # The wrong ones of a problem are taken in turn.
    per_problem = rows.group_by("problem_id").agg(
        pl.len(), wrong=pl.col("rejected_trace_id").n_unique()
    )
    there = traces.filter(verdict="wrong").group_by("problem_id").agg(there=pl.len())
    both = per_problem.join(there, on="problem_id")
    assert (both["wrong"] == both.select(pl.min_horizontal("len", "there")).to_series()).all()
    again = export_corpus(wh, "best", tmp_path / "again", "preference")
    assert read(tmp_path / "again").equals(rows)
    assert again == count


def test_pairs_need_wrong_traces(wh: Warehouse, tmp_path: Path) -> None:
    api.filter("unfiltered", corpus="right", where="verdict = 'correct'", warehouse=wh.root)
    version = wh.latest("corpora", "right")
    manifest = json.loads((version.path / "manifest.json").read_text())
    (version.path / "manifest.json").write_text(json.dumps({**manifest, "parents": []}))
    with pytest.raises(CurateError, match="no pairs in corpora/right"):
        export_corpus(wh, "right", tmp_path / "out", "preference")


def test_prompts_are_one_row_per_problem_with_its_verifier(wh: Warehouse, tmp_path: Path) -> None:
    for corpus in ("best", "prompts"):
        rows_of = wh.latest("corpora", corpus).read().collect()
        export_corpus(wh, corpus, tmp_path / corpus, "prompts")
        rows = read(tmp_path / corpus)
        assert len(rows) == rows["problem_id"].n_unique() == rows_of["problem_id"].n_unique()
        assert rows["reference"].null_count() == 0
        label = json.loads(rows["label"][0])
        assert label["reference"] == rows["reference"][0]
        assert label["verifier"] == "math"


def test_a_corpus_of_prompts_has_no_completions_to_export(wh: Warehouse, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="holds prompts only"):
        export_corpus(wh, "prompts", tmp_path / "out", "prompt-completion")


def test_names_that_do_not_exist_are_refused_with_the_closest(
    wh: Warehouse, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match="did you mean 'messages'"):
        export_corpus(wh, "best", tmp_path / "out", "mesages")
    with pytest.raises(UsageError, match="did you mean 'axolotl'"):
        export_corpus(wh, "best", tmp_path / "out", trainer="axolotol")
    with pytest.raises(UsageError, match="did you mean 'best'"):
        export_corpus(wh, "bets", tmp_path / "out")
    with pytest.raises(UsageError, match="--for writes a folder"):
        export_corpus(wh, "best", tmp_path / "out.parquet", trainer="trl")


TASKS = [("best", "messages", "sft"), ("best", "preference", "dpo"), ("prompts", "messages", "rl")]


@pytest.mark.parametrize(("corpus", "format", "task"), TASKS)
@pytest.mark.parametrize("name", list(TRAINERS))
def test_a_config_is_written_for_each_task_that_a_trainer_has(
    wh: Warehouse, tmp_path: Path, name: str, corpus: str, format: str, task: str
) -> None:
    out = tmp_path / "out"
    if task not in TRAINERS[name].formats:
        with pytest.raises(UsageError, match=f"--for {name}: it is given "):
            export_corpus(wh, corpus, out, format, trainer=name, model="owner/it's")
        return
    count = export_corpus(wh, corpus, out, format, trainer=name, model="owner/it's")
    assert len(read(out)) == count > 0
    card = (out / "README.md").read_text()
    assert f"## Training with {name}" in card
    text = ""
    for path in out.iterdir():
        if path.suffix in (".yaml", ".json", ".toml", ".sh", ".py"):
            text += path.read_text()
            check(path)
    assert "owner/it" in text
    # The same folder is written again, for another trainer, without the remains of the first.
    export_corpus(wh, "best", out, trainer="axolotl", model="m")
    assert sorted(p.name for p in out.iterdir()) == ["README.md", "axolotl.yaml", "data"]


def check(path: Path) -> None:
    """Check that the file parses in its own language."""
    text = path.read_text()
    if path.suffix == ".yaml":
        values = yaml.safe_load(text)
        assert "owner/it's" in values.values()
    elif path.suffix == ".json":
        json.loads(text)
    elif path.suffix == ".toml":
        assert tomllib.loads(text)["model"]["name"] == "owner/it's"
    elif path.suffix == ".py":
        compile(text, path.name, "exec")
    elif path.suffix == ".sh":
        done = subprocess.run(["bash", "-n", str(path)], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr


def test_the_model_is_by_default_the_one_that_sampled(wh: Warehouse, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="say with --model which model is trained"):
        export_corpus(wh, "best", tmp_path / "out", trainer="trl")
    hashed = wh.sql("SELECT any_value(model_hash) AS h FROM traces").item()
    row = {"model_hash": hashed, "name": "it", "kind": "base", "path": "somewhere/it"}
    wh.write("models", "base", [row], key="base")
    export_corpus(wh, "best", tmp_path / "out", trainer="trl")
    config = yaml.safe_load((tmp_path / "out" / "sft.yaml").read_text())
    assert config["model_name_or_path"] == "somewhere/it"


def test_the_card_has_front_matter_that_the_hub_reads(wh: Warehouse, tmp_path: Path) -> None:
    export_corpus(wh, "best", tmp_path / "out", license="mit")
    head = (tmp_path / "out" / "README.md").read_text().split("---")[1]
    values = yaml.safe_load(head)
    assert values["license"] == "mit"
    assert values["language"] == ["en"]
    assert values["size_categories"] == ["n<1K"]
    assert {"curate", "reasoning", "chain-of-thought"} <= set(values["tags"])
    assert values["configs"] == [{"config_name": "default", "data_files": "data/train-*"}]
    export_corpus(wh, "best", tmp_path / "other")
    assert 'license: "unknown"' in (tmp_path / "other" / "README.md").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("format", list(FORMATS))
def test_datasets_reads_every_format(wh: Warehouse, tmp_path: Path, format: str) -> None:
    datasets = pytest.importorskip("datasets")
    count = export_corpus(wh, "best", tmp_path / "out", format)
    loaded = datasets.load_dataset(
        str(tmp_path / "out"), split="train", cache_dir=str(tmp_path / "cache")
    )
    assert loaded.num_rows == count


def test_the_newest_version_has_a_view_and_a_path(wh: Warehouse) -> None:
    api.filter("unfiltered", corpus="twice", warehouse=wh.root)
    api.filter("unfiltered", corpus="twice", where="verdict = 'correct'", warehouse=wh.root)
    newest = wh.latest("corpora", "twice")
    query = "SELECT DISTINCT version FROM latest_corpora WHERE dataset = 'twice'"
    assert wh.sql(query).item() == newest.version
    assert wh.sql("SELECT count(DISTINCT version) FROM corpora WHERE dataset = 'twice'").item() == 2
    link = wh.root / "latest" / "twice"
    assert not Path(link.readlink()).is_absolute()
    assert pl.read_parquet(link / "*.parquet").height == newest.manifest["rows"]
    # The first selection again is not the newest again: the path follows the view.
    api.filter("unfiltered", corpus="twice", warehouse=wh.root)
    assert link.resolve() == newest.path.resolve()


def test_a_verdict_is_the_reward_in_the_signatures_of_other_trainers() -> None:
    good, bad = "<think> x </think> <answer> 5 </answer>", "<think> x </think> <answer> 6 </answer>"
    columns: dict[str, Any] = {"verifier": ["math", "math", None], "reference": ["5", "5", "5"]}
    texts = [[{"role": "assistant", "content": good}], bad, good]
    assert accuracy_reward(completions=texts, prompts=[1, 2, 3], **columns) == [1.0, 0.0, None]
    info = {"verifier": "math", "split": "train"}
    assert compute_score("sums", good, "5", info) == 1.0
    assert compute_score("sums", bad, "5", extra_info=info) == 0.0
    pytest.importorskip("torch")
    labels = [json.dumps({"reference": "5", "verifier": "math"})] * 2
    rewards = reward_func(["ask" + good, "ask" + bad], ["ask", "ask"], labels)
    assert rewards.tolist() == [1.0, 0.0]
