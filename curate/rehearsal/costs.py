"""Costs of sampling and training as pure functions of a model, a load and a GPU.

N is the number of parameters that a token passes through. A forward pass is 2 N FLOPs per token,
training 6 N (Kaplan et al. 2020, arXiv 2001.08361, section 2.1), and 8 N if layers are computed
again in the backward pass. Products of attention scores are left out: for a model of 7 billion
parameters and sequences of 8,192 tokens they would add about a tenth.
"""

from __future__ import annotations

from dataclasses import dataclass

from curate.rehearsal.architectures import Model
from curate.rehearsal.gpus import GPU

GIB = 2**30
MOST_SEQUENCES = 256  # that vLLM computes at once by default (`max_num_seqs`)
USABLE = 0.9  # share of a GPU's memory that vLLM takes by default (`gpu_memory_utilization`)
OVERHEAD = 2.0 * GIB  # a CUDA context, buffers of collectives, fragments: a guess of this project
TILES = 0.25 * GIB  # logits that exist at once, with their gradients (logprobs.py: 64 MiB each)


@dataclass(frozen=True)
class Assumptions:
    """What cannot be known before the run. Each may be given as `--assume NAME=VALUE`.

    length: tokens of a completion, as a share of `max_tokens`; 1 makes the bill an upper bound.
    kept: share of the traces that a filter keeps; 1 likewise.
    question: tokens added to each prompt whose problem is a stand-in (a guess).
    train: share of the peak FLOPs that training reaches. The Llama 3 report measured 0.38 to 0.43
    (arXiv 2407.21783, table 4), with a trainer tuned for it.
    prefill: the same for prompts (a guess). decode: share of the memory bandwidth that sampling
    reaches (a guess).
    """

    length: float = 1.0
    kept: float = 1.0
    question: float = 150.0
    train: float = 0.35
    prefill: float = 0.4
    decode: float = 0.6


@dataclass(frozen=True)
class Cost:
    """FLOPs, and GPU-seconds of the GPUs that compute."""

    flops: float = 0.0
    gpu_seconds: float = 0.0

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.flops + other.flops, self.gpu_seconds + other.gpu_seconds)


@dataclass(frozen=True)
class Memory:
    """Bytes per GPU, by purpose."""

    weights: float = 0.0
    gradients: float = 0.0
    optimizer: float = 0.0
    reference: float = 0.0
    activations: float = 0.0
    cache: float = 0.0
    trainer: float = 0.0  # what a trainer on the same GPU keeps while the engine samples
    overhead: float = 0.0

    @property
    def total(self) -> float:
        return sum(vars(self).values())

    @property
    def resting(self) -> float:
        """Bytes that a trainer keeps between updates."""
        return self.weights + self.optimizer + self.reference


def sampling(
    model: Model,
    requests: float,
    prompt: float,
    tokens: float,
    gpu: GPU,
    assume: Assumptions,
    gpus_per_copy: int = 1,
    taken: float = 0.0,
) -> Cost:
    """Cost of completing `requests` prompts of `prompt` tokens with `tokens` each.

    A step of decoding gives every running sequence one token. It takes as long as reading the
    weights and the cached keys and values, or as computing, whichever is longer (the roofline of
    Pope et al. 2022, arXiv 2211.05102, section 2). Weights are in 16 bits. `taken`: bytes per GPU
    that a trainer holds meanwhile.
    """
    flops = 2 * model.active * requests * (prompt + tokens)
    batch = running(model, prompt, tokens, gpu, gpus_per_copy, taken)
    batch = max(1.0, min(batch, requests))
    context = prompt + tokens / 2  # mean over the life of a sequence
    read = 2 * min(model.parameters, model.active * batch) + batch * model.kv_bytes * context
    compute = 2 * model.active * batch / (gpu.flops * gpus_per_copy * assume.prefill)
    step = max(read / (gpu.bandwidth * gpus_per_copy * assume.decode), compute)
    decode = requests * tokens / batch * step
    prefill = 2 * model.active * requests * prompt / (gpu.flops * gpus_per_copy * assume.prefill)
    return Cost(flops, (decode + prefill) * gpus_per_copy)


def running(
    model: Model, prompt: float, tokens: float, gpu: GPU, gpus_per_copy: int, taken: float = 0.0
) -> float:
    """Sequences that one copy of the model computes at once: as many as the cache has room for."""
    room = (USABLE * gpu.memory - taken) * gpus_per_copy - 2 * model.parameters
    each = max(1.0, model.kv_bytes * (prompt + tokens / 2))
    return min(float(MOST_SEQUENCES), room / each)


def sampling_memory(
    model: Model,
    prompt: float,
    tokens: float,
    gpu: GPU,
    gpus_per_copy: int = 1,
    taken: float = 0.0,
) -> Memory:
    """Memory per GPU of one copy: weights in 16 bits, and the cache of the sequences that run at
    once; of one sequence at least. `taken` is the trainer's.
    """
    count = max(1.0, running(model, prompt, tokens, gpu, gpus_per_copy, taken))
    cache = model.kv_bytes * max(count * (prompt + tokens / 2), prompt + tokens)
    return Memory(
        weights=2 * model.parameters / gpus_per_copy,
        cache=cache / gpus_per_copy,
        trainer=taken,
        overhead=OVERHEAD,
    )


def training(
    model: Model,
    trained: float,
    scored: float,
    scorer: Model | None,
    gpu: GPU,
    assume: Assumptions,
    recomputes: bool,
) -> Cost:
    """Cost of training on `trained` tokens, and of a forward pass over `scored` ones, such as those
    of a reference (`scorer`; the same model by default).
    """
    flops = (8 if recomputes else 6) * model.active * trained
    flops += 2 * (scorer or model).active * scored
    return Cost(flops, flops / (gpu.flops * assume.train))


def training_memory(
    model: Model,
    tokens: float,
    ranks: int,
    *,
    recomputes: bool,
    reference: Model | None = None,
    half: bool = True,
    trained_share: float = 1.0,
    sharded: bool = True,
    overhead: float = OVERHEAD,
    tiles: float = TILES,
) -> Memory:
    """Memory per GPU of the trainer.

    Weights, gradients and two moments are fp32: 4, 4 and 8 bytes per parameter, divided among the
    ranks (FSDP2; docs/train.md). `trained_share` is below 1 with adapters. A rank also holds two
    gathered layers, and embeddings and head in fp32. Every rank holds the whole `reference` in
    fp32. `tokens` go through the model at once; `half`: products are in bf16.
    """
    ranks = ranks if sharded else 1
    states = model.parameters / ranks
    embeddings = model.vocabulary * model.hidden * (1 if model.tied else 2)
    gathered = 0.0
    if ranks > 1:
        layer = max(0, model.parameters - embeddings) / max(1, model.layers)
        gathered = 2 * layer * (2 if half else 4) + 4 * embeddings
    return Memory(
        weights=4 * states + gathered,
        gradients=4 * states * trained_share,
        optimizer=8 * states * trained_share,
        reference=4 * reference.parameters if reference else 0.0,
        activations=activations(model, tokens, recomputes, half) + tiles,
        overhead=overhead,
    )


def activations(model: Model, tokens: float, recomputes: bool, half: bool = True) -> float:
    """Bytes kept for the backward pass.

    Per token and layer: the two inputs of the norms in fp32, and in the format of the products
    queries and attention's output (hidden each), keys and values, and two tensors of the MLP's
    width: 12 h + 2 kv + 4 i bytes in bf16. For SmolLM2-135M this is 13.5 KiB, and 13.7 KiB were
    counted (docs/train.md). With layers computed again, one layer's, and one input per layer.
    """
    size = 2 if half else 4
    each = 8 * model.hidden + size * (2 * model.hidden + model.kv_width + 2 * model.inner)
    if recomputes:
        return tokens * (4 * model.hidden * model.layers + 2 * each)
    return tokens * each * model.layers
