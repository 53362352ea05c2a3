"""A tiny Llama with random weights and a tokenizer of characters, for tests that need any model."""

from __future__ import annotations

import string
from pathlib import Path
from typing import Any

CHARACTERS = string.digits + string.ascii_letters + string.punctuation + " \n" + "的是和加等于问答"
TURNS = (
    "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def char_tokenizer(characters: str = CHARACTERS) -> Any:
    """A Hugging Face tokenizer with one token per character.

    Special tokens: <pad> 0, <eos> 1, <end> 2, <unk> 3. Unknown characters become <unk>; any other
    text decodes to itself.
    """
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    specials = ["<pad>", "<eos>", "<end>", "<unk>"]
    vocab = {token: number for number, token in enumerate([*specials, *dict.fromkeys(characters)])}
    backend = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    backend.decoder = decoders.Fuse()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="<pad>",
        eos_token="<eos>",
        unk_token="<unk>",
        additional_special_tokens=["<end>"],
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = TURNS
    return tokenizer


def make_tiny_model(
    directory: str | Path,
    *,
    seed: int = 0,
    hidden: int = 64,
    layers: int = 2,
    heads: int = 2,
    kv_heads: int = 1,
    intermediate: int | None = None,
    max_len: int = 512,
    characters: str = CHARACTERS,
    dtype: str = "float32",
    scale: float = 0.02,
    end_bias: float = 0.0,
) -> Path:
    """Writes a Llama of random weights in Hugging Face format to `directory` and returns that.

    The head size is hidden / heads (vLLM on a CPU wants a multiple of 32). `scale` is the standard
        deviation of the
    weights: at 0.02 the next character is nearly uniform. generation_config names two end tokens,
        <eos> and <end>.
    `end_bias` above 0 makes end tokens likelier, so that completions end before their limit.
    """
    import torch
    from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    directory = Path(directory)
    tokenizer = char_tokenizer(characters)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden,
        intermediate_size=intermediate or 2 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        max_position_embeddings=max_len,
        initializer_range=scale,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    ends = [tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids("<end>")]
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config)
    if end_bias:
        _favour(model, ends, end_bias / hidden**0.5)
    model = model.to(getattr(torch, dtype))
    model.generation_config = GenerationConfig(
        eos_token_id=ends, pad_token_id=tokenizer.pad_token_id
    )
    directory.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


def _favour(model: Any, tokens: list[int], bias: float) -> None:
    """Adds about `bias` to the logits of `tokens`: a constant channel of the last norm's output
    feeds only them.
    """
    import torch

    with torch.no_grad():
        model.lm_head.weight[:, 0] = 0
        model.lm_head.weight[tokens, 0] = bias
        # every token's embedding carries a large first channel, which the residual stream keeps
        model.model.embed_tokens.weight[:, 0] = 1.0
