"""Tiny random models that take the place of the real ones, each with the same architecture, the
same context, and its own tokenizer if that is on this machine.
"""

from __future__ import annotations

import re
import shutil
import zlib
from importlib.resources import files
from pathlib import Path
from typing import Any

from curate.engines.base import load_tokenizer
from curate.engines.models import end_tokens
from curate.errors import UsageError
from curate.rehearsal.architectures import config_of, from_config, local_files, tiny_config

TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json", "merges.txt",
    "special_tokens_map.json", "added_tokens.json", "chat_template.jinja", "chat_template.json",
)  # fmt: skip
STANDIN_VOCABULARY = 4096
# The format of Qwen's and many other chat models.
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


class TinyModels:
    """Makes the tiny model of each named model once, in `folder`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.made: dict[str, Path] = {}
        self.standins: dict[str, str] = {}
        """Models whose tokenizer is not on this machine, with the reason."""

    def of(self, spec: str) -> Path:
        """Directory of the tiny model for `spec`. UsageError if its architecture is unknown."""
        if spec not in self.made:
            self.made[spec] = self._make(spec)
        return self.made[spec]

    def has_tokenizer(self, spec: str) -> bool:
        """Whether the tiny model has the real model's tokenizer."""
        self.of(spec)
        return spec not in self.standins

    def _make(self, spec: str) -> Path:
        import torch
        from transformers import GenerationConfig
        from transformers.utils import logging

        logging.disable_progress_bar()
        config, _ = config_of(spec)
        target = self.folder / re.sub(r"[^A-Za-z0-9._-]+", "-", spec).strip("-.")
        target.mkdir(parents=True, exist_ok=True)
        tokenizer, ends = self._tokenizer(spec, target)
        size = max(len(tokenizer), max(ends) + 1)
        tiny = tiny_config(config, size)
        tiny |= {
            "eos_token_id": sorted(ends),
            "pad_token_id": tokenizer.pad_token_id or min(ends),
            "bos_token_id": tokenizer.bos_token_id,
        }
        with torch.random.fork_rng():
            # by name, so that two models of one architecture differ
            torch.manual_seed(zlib.crc32(spec.encode()))
            model = from_config(tiny).to(torch.float32)
        model.generation_config = GenerationConfig(eos_token_id=sorted(ends))
        model.save_pretrained(target)
        return target

    def _tokenizer(self, spec: str, target: Path) -> tuple[Any, set[int]]:
        """Write the tokenizer of `spec`, or the stand-in; return it, and its end tokens."""
        folder = local_files(spec)
        if folder is not None:
            for name in TOKENIZER_FILES:
                if (folder / name).is_file():
                    shutil.copyfile(folder / name, target / name)
            try:
                tokenizer = load_tokenizer(folder)
                ends = end_tokens(folder, tokenizer)
                if ends:
                    return tokenizer, ends
                self.standins[spec] = f"the tokenizer in {folder} names no end token"
            except UsageError:
                self.standins[spec] = f"{folder} has no tokenizer that loads"
            for name in TOKENIZER_FILES:
                (target / name).unlink(missing_ok=True)
        else:
            self.standins[spec] = "not on this machine"
        tokenizer = standin_tokenizer()
        tokenizer.save_pretrained(target)
        return tokenizer, {tokenizer.eos_token_id}


def standin_tokenizer() -> Any:
    """A byte-level BPE of a few thousand tokens, trained on the shipped templates and worked
    examples: it encodes every text, and gives it back unchanged.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=STANDIN_VOCABULARY,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    folders = (files("curate.prompts") / "templates", files("curate.generate") / "examples")
    texts = [
        file.read_text("utf-8")
        for folder in folders
        for file in sorted(folder.iterdir(), key=lambda file: file.name)
        if file.name.endswith((".txt", ".jsonl"))
    ]
    backend.train_from_iterator(texts, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = CHATML
    return tokenizer
