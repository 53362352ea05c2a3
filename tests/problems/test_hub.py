"""Hugging Face datasets from local directories: saved ones, and ones with plain data files."""

import pytest

from curate.errors import UsageError
from curate.problems import load_problems

datasets = pytest.importorskip("datasets")

TRAIN = {"problem": ["What is 1 + 2?", "What is 2 + 2?"], "answer": [3, 4]}
TEST = {"problem": ["What is 3 + 3?", "what is 1 + 2?"], "answer": [6, 3]}


def load(path, **config):
    own = {"columns": {"question": "problem", "reference": "answer"}, "verifier": "math"}
    return load_problems({"sources": [{"source": "hub", "dataset": str(path)} | own | config]})


@pytest.fixture
def saved(tmp_path):
    parts = {"train": datasets.Dataset.from_dict(TRAIN), "test": datasets.Dataset.from_dict(TEST)}
    datasets.DatasetDict(parts).save_to_disk(tmp_path / "sums")
    return tmp_path / "sums"


def test_a_saved_data_set(saved):
    frame, report = load(saved, parts={"train": "train", "test": "held-out"})
    assert frame["reference"].to_list() == ["3", "4", "6", "3"]
    # The first question is in their test set too, in other letters: it is held out.
    assert frame["split"].to_list() == ["held-out", "train", "held-out", "held-out"]
    assert report.moved_to_held_out == 1
    assert frame["source"].unique().to_list() == ["sums"]


def test_a_split_that_was_saved_alone(tmp_path):
    datasets.Dataset.from_dict(TRAIN).save_to_disk(tmp_path / "one")
    assert load(tmp_path / "one").frame["question"].to_list() == TRAIN["problem"]


def test_a_selection_of_rows_is_respected(tmp_path):
    datasets.Dataset.from_dict(TRAIN).select([1]).save_to_disk(tmp_path / "one")
    assert load(tmp_path / "one").frame["question"].to_list() == TRAIN["problem"][1:]


def test_a_directory_of_data_files(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "plain").mkdir()
    datasets.Dataset.from_dict(TRAIN).to_json(tmp_path / "plain" / "train.jsonl")
    assert load(tmp_path / "plain", limit=1).frame["reference"].to_list() == ["3"]


def test_a_missing_split_or_dataset_is_named(saved, tmp_path):
    with pytest.raises(UsageError, match=r"cannot load dataset .*split validation\)"):
        load(saved, parts={"validation": None})
    with pytest.raises(UsageError, match="no column 'prompt'"):
        load(saved, columns={"question": "prompt"})
    with pytest.raises(UsageError, match="cannot load dataset"):
        load(tmp_path / "nothing-here")
