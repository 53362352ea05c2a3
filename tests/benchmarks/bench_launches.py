"""Operators that one update would launch on a GPU and memory it keeps, counted without one.

    python tests/benchmarks/bench_launches.py [--layers 30] [--samples 8] [--completion 64]

Compared with plain transformers under autocast. Operators are those that PyTorch dispatches on a
CPU, except views and allocations, with the attention that `curate` uses on a GPU, which launches
about one kernel for each. RMSNorm is one operator forward and two backward there (`layers.py`); on
a CPU PyTorch takes it apart, so for ours the count is corrected. The model is a Llama of random
weights and small width: the count depends on its layers only. Kept memory is what the process holds
after the forward pass of the layers, with SmolLM2-135M's widths and completions of four times the
length.
"""

from __future__ import annotations

import argparse
import collections
import ctypes
import random
from typing import Any

FREE = {
    *(
        "view",
        "_unsafe_view",
        "t",
        "transpose",
        "expand",
        "slice",
        "select",
        "unsqueeze",
        "squeeze",
        "permute",
    ),
    *(
        "detach",
        "alias",
        "as_strided",
        "split",
        "chunk",
        "unbind",
        "lift_fresh",
        "empty",
        "empty_like",
        "new_empty",
    ),
    *("is_same_size", "split_with_sizes", "narrow", "promote_types", "scalar_tensor"),
}


def counted(work: Any) -> collections.Counter[str]:
    """Operators that `work` dispatches, by name."""
    from torch.utils._python_dispatch import TorchDispatchMode

    operators: collections.Counter[str] = collections.Counter()

    class Count(TorchDispatchMode):
        def __torch_dispatch__(
            self, function: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            name = function._schema.name.split("::")[1]
            if name not in FREE:
                operators[name] += 1
            return function(*args, **(kwargs or {}))

    with Count():
        work()
    return operators


def llama(layers: int, wide: bool = False) -> Any:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    widths = (576, 1536, 9, 3) if wide else (64, 128, 8, 4)
    names = ("hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads")
    sizes = dict(zip(names, widths, strict=True))
    return LlamaForCausalLM(
        LlamaConfig(vocab_size=1000, num_hidden_layers=layers, tie_word_embeddings=True, **sizes)
    )


def draw(samples: int, completion: int) -> list[list[int]]:
    """Token ids: one prompt of 20 and its completions."""
    dice = random.Random(0)
    prompt = [dice.randrange(3, 1000) for _ in range(20)]
    return [prompt + [dice.randrange(3, 1000) for _ in range(completion)] for _ in range(samples)]


def kept(args: argparse.Namespace) -> dict[str, float]:
    """KiB a token and a layer that are held between the forward and the backward pass."""
    import torch

    from curate.train.config import ModelConfig
    from curate.train.model.layout import PromptCompletion
    from curate.train.model.policy import Policy

    # what is freed goes back to the system: M_MMAP_THRESHOLD
    ctypes.CDLL(None).mallopt(-3, 1 << 16)

    def held(work: Any) -> int:
        def resident() -> int:
            ctypes.CDLL(None).malloc_trim(0)
            return int(open("/proc/self/statm").read().split()[1]) * 4096

        with torch.no_grad():
            work()
        before = resident()
        states = work()
        after = resident()
        del states
        return after - before

    tokens = draw(args.samples, 4 * args.completion)
    policy = Policy(
        llama(args.layers, True),
        ModelConfig(precision="bf16", micro_batch_tokens=1 << 20),
        device="cpu",
    )
    layout = policy.layout([PromptCompletion(t[:20], t[20:]) for t in tokens])
    model, ids = llama(args.layers, True).train(), torch.tensor(tokens)

    def plainly() -> Any:
        with torch.autocast("cpu", torch.bfloat16):
            return model.base_model(ids, use_cache=False)

    size = {"ours": held(lambda: policy.module.hidden(layout)) / layout.tokens}
    size["transformers"] = held(plainly) / ids.numel()
    return {name: value / args.layers / 1024 for name, value in size.items()}


def ours(args: argparse.Namespace, tokens: list[list[int]]) -> Any:
    """One GRPO update of one group; `main` corrects the operators of our RMSNorm to three."""
    from curate.train.config import GRPOConfig, ModelConfig
    from curate.train.grpo import RolloutRow, grpo_step
    from curate.train.model import attention
    from curate.train.model.layout import PromptCompletion
    from curate.train.model.policy import Policy
    from curate.train.ranks import Ranks

    attention.matmul_attention = attention.sdpa_attention
    policy = Policy(
        llama(args.layers), ModelConfig(precision="bf16", micro_batch_tokens=1 << 20), device="cpu"
    )
    config = GRPOConfig(model="none")
    rows = [
        RolloutRow(PromptCompletion(t[:20], t[20:]), "", 0, (-1.0) ** i, True, None)
        for i, t in enumerate(tokens)
    ]

    def update() -> None:
        policy.model.zero_grad(set_to_none=True)
        grpo_step(policy, rows, config, Ranks(), 1)

    return update


def plain(args: argparse.Namespace, tokens: list[list[int]]) -> Any:
    """The same sequences through unchanged transformers, with completion log-probs summed."""
    import torch

    model, ids = llama(args.layers).train(), torch.tensor(tokens)

    def update() -> None:
        model.zero_grad(set_to_none=True)
        with torch.autocast("cpu", torch.bfloat16):
            logits = model(ids, use_cache=False).logits[:, 19:-1]
            torch.log_softmax(logits.float(), -1).gather(-1, ids[:, 20:, None]).sum().backward()

    return update


def norms(layers: int) -> int:
    """Operators of our RMSNorms (forward, backward, normalised again) beyond those on a GPU."""
    import torch

    from curate.train.model.layers import LeanNorm, _normalise

    x, weight = torch.randn(1, 5, 64, requires_grad=True), torch.ones(64, requires_grad=True)
    whole = (
        sum(
            counted(
                lambda: LeanNorm.apply(x, weight, 1e-6)[0].backward(torch.ones(1, 5, 64))
            ).values()
        )
        - 1
    )
    again = (
        sum(
            counted(
                lambda: _normalise(x.detach(), torch.ones(1, 5, 1), weight.detach(), 1e-6)
            ).values()
        )
        - 1
    )
    return (2 * layers + 1) * (whole - 3) + 2 * layers * (again - 1)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--layers", type=int, default=30)
    parser.add_argument("--samples", type=int, default=8)
    parser.add_argument("--completion", type=int, default=64)
    args = parser.parse_args()
    tokens = draw(args.samples, args.completion)
    for name, make in (("ours", ours), ("transformers", plain)):
        work = make(args, tokens)
        work()  # what is made once is made now
        operators = counted(work)
        total = sum(operators.values()) - (norms(args.layers) if name == "ours" else 0)
        print(f"{name:14}{total:6}   {dict(operators.most_common(12))}", flush=True)

    for name, size in kept(args).items():
        print(f"{name:14}{size:6.1f} KiB kept per token and layer", flush=True)


if __name__ == "__main__":
    main()
