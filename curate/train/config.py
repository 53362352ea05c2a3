"""Configs of the trainers. Unknown keys are errors; every default says where it comes from."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from curate.config import Config


class LoraConfig(Config):
    """Low-rank adapters instead of full fine-tuning; merged into the weights wherever a model is written."""

    rank: int = Field(default=16, ge=1)
    alpha: int = Field(default=32, ge=1)
    dropout: float = Field(default=0.0, ge=0, lt=1)
    targets: list[str] | Literal["all-linear"] = "all-linear"


class OptimConfig(Config):
    """AdamW with warm-up and a cosine to a floor. The step size is the same for every parameter."""

    lr: float = Field(default=5e-5, gt=0)  # the R1 report's SFT
    floor: float = Field(
        default=0.1, ge=0, le=1
    )  # last learning rate as a share of `lr`: 5e-5 to 5e-6 in the report
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    warmup: float = Field(
        default=0.03, ge=0
    )  # share of all steps where below 1, else number of steps
    betas: tuple[float, float] = (0.9, 0.95)
    epsilon: float = Field(default=1e-8, gt=0)
    weight_decay: float = Field(default=0.0, ge=0)
    max_grad_norm: float = Field(default=1.0, gt=0)


class ModelConfig(Config):
    """How the model is held and computed. Weights are kept in fp32 whatever `precision` computes in."""

    precision: Literal["bf16", "fp32", "auto"] = (
        "auto"  # auto: bf16 where the processor multiplies it natively
    )
    layout: Literal["tree", "padded"] = (
        "tree"  # tree: no padding, shared prefixes computed once; padded: the plain way
    )
    lora: LoraConfig | None = None
    gradient_checkpointing: bool = False
    # Tokens that go through the model at once (shared prefixes counted once): what bounds the memory of a step.
    micro_batch_tokens: int = Field(default=1280, ge=1)
    logprob_chunk: int = Field(
        default=1024, ge=1
    )  # positions whose logits are computed together, in tiles of 8 MiB
    fp32_head: bool = False  # logits in fp32: log-probs exact to 1e-5, at three times the cost of the head on a CPU
    device: str = "auto"
    fsdp: bool = True  # with torchrun: shard weights and optimizer (FSDP2); false: every rank holds all of them


class CheckpointConfig(Config):
    every: int = Field(
        default=5, ge=0
    )  # steps between checkpoints that a killed run goes on from; 0: only at the end
    keep_last: int = Field(default=1, ge=1)
    keep_best: bool = True
    dtype: Literal["auto", "float32", "bfloat16"] = (
        "auto"  # of the finished model; auto: as the model it started from
    )


class Mixture(Config):
    """One corpus in a mixture."""

    corpus: str  # name or name@version
    weight: float = Field(default=1.0, gt=0)  # multiplies the loss of its rows
    share: float = Field(
        default=1.0, gt=0
    )  # rows taken an epoch, as a share of the corpus; above 1 repeats rows


Tracker = Literal["tensorboard", "wandb", "trackio"]


class SFTConfig(Config):
    """`curate train sft`: supervised fine-tuning on a corpus, completion tokens only."""

    name: str = "sft"
    model: str  # directory in Hugging Face format
    corpus: str | list[Mixture]  # name, name@version, or a mixture
    domain_weights: dict[str, float] = {}  # multiplies the loss of the rows of a domain
    order: Literal["random", "difficulty"] = "random"  # difficulty: easy first, in the first epoch
    epochs: float = Field(default=1.0, gt=0)  # the report trains 2-3
    batch_size: int = Field(default=16, ge=1)  # examples a step
    max_length: int = Field(default=4096, ge=2)  # tokens of prompt and completion
    too_long: Literal["truncate", "skip", "fail"] = "skip"
    trackers: list[Tracker] = []
    seed: int = 0
    optim: OptimConfig = OptimConfig()
    compute: ModelConfig = ModelConfig()
    checkpoint: CheckpointConfig = CheckpointConfig(every=50)


class DistillConfig(SFTConfig):
    """`curate train distill` on a corpus; `kind: on-policy` takes the keys of GRPO instead (see jobs.py)."""

    name: str = "distill"
    teacher: str
    # sequences: SFT on what the teacher wrote, the report's way, with any two tokenizers. The others compare logits, so
    # teacher and student share a tokenizer: KL(teacher || student), or KL(student || teacher).
    kind: Literal["sequences", "forward", "reverse"] = "forward"
    mix: float = Field(default=0.0, ge=0, le=1)  # share of the plain SFT loss in the whole
    temperature: float = Field(default=1.0, gt=0)


class RewardComponent(Config):
    """One term of a reward: weight times the value of a named component (see curate/rewards.py)."""

    weight: float = 1.0
    options: dict[str, Any] = {}


class LossConfig(Config):
    """The GRPO objective; see `curate.train.losses.policy_loss` for the formulas."""

    normalisation: Literal["grpo", "dr_grpo", "dapo"] = "grpo"
    clip_low: float = Field(default=0.2, ge=0, le=1)  # 1: no lower end
    clip_high: float = Field(default=0.2, ge=0)  # the report: 10, in its first RL for R1
    ratio: Literal["token", "sequence"] = "token"
    beta: float = Field(default=0.0, ge=0)  # 0 loads no reference; the report's R1-Zero: 0.001
    kl: Literal["k1", "k2", "k3"] = "k3"
    reference: str | None = (
        None  # model directory of the reference, such as a teacher; null: where training started
    )
    reference_every: int = Field(
        default=0, ge=0
    )  # steps between replacements of the reference (the report: 400); 0: never
    sampler_cap: float | None = Field(
        default=2.0, gt=0
    )  # truncated importance sampling; null: no correction
    advantage: Literal["group", "batch", "none"] = "group"
    ddof: Literal[0, 1] = 1
    mask_truncated: bool = (
        False  # rows cut off by the length limit get no gradient (they stay in the group's mean)
    )


class TrainSampling(Config):
    """How rollouts are sampled. Truncated sampling (top_p, top_k) is left out: its log-probs are not the policy's."""

    temperature: float = Field(default=1.0, gt=0)
    max_tokens: int = Field(default=256, ge=1)
    stop: list[str] = []


class EvalConfig(Config):
    """pass@1, pass@k and cons@k on held-out problems while training runs."""

    every: int = Field(default=0, ge=0)  # steps; 0: never
    samples: int = Field(default=4, ge=1)
    temperature: float = Field(default=0.6, ge=0)  # the report's
    top_p: float = Field(default=0.95, gt=0, le=1)
    patience: int = Field(
        default=0, ge=0
    )  # stop when pass@1 has not risen for so many evaluations; 0: never


class GRPOConfig(Config):
    """`curate train grpo`: reinforcement learning from verifiable rewards."""

    name: str = "grpo"
    model: str  # directory in Hugging Face format
    template: str = "r1-zero"
    form: str = "r1-zero"
    steps: int = Field(
        default=100, ge=1
    )  # rollout rounds; each makes mini_batches * epochs optimizer steps
    prompts: int = Field(default=16, ge=1)  # problems a round (the report: 32)
    samples: int = Field(default=8, ge=2)  # completions a problem (the report: 16)
    mini_batches: int = Field(default=1, ge=1)  # optimizer steps a round (the report: 16)
    epochs: int = Field(default=1, ge=1)  # passes over a round
    dynamic_sampling: int = Field(
        default=0, ge=0
    )  # fresh rounds at most for groups of equal rewards (DAPO); 0: off
    rewards: dict[str, float | RewardComponent] = {"accuracy": 1.0, "format": 0.2}
    sampling: TrainSampling = TrainSampling()
    loss: LossConfig = LossConfig()
    optim: OptimConfig = OptimConfig(lr=3e-6, schedule="constant", warmup=0)  # the report's R1-Zero
    compute: ModelConfig = ModelConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    evaluation: EvalConfig = EvalConfig()
    show_every: int = Field(default=10, ge=0)  # rounds between completions shown; 0: never
    # Token ids and log-probs. true: in the traces, for good; false: beside the checkpoints until one covers them; a
    # number: beside the checkpoints for so many days.
    keep_tokens: bool | float = True
    trackers: list[Tracker] = []
    seed: int = 0

    @model_validator(mode="after")
    def _divisible(self) -> GRPOConfig:
        if self.prompts % self.mini_batches:
            raise ValueError(
                f"prompts ({self.prompts}) must be a multiple of mini_batches ({self.mini_batches}): "
                "a group is never cut in two"
            )
        if self.keep_tokens < 0:
            raise ValueError(
                f"keep_tokens is {self.keep_tokens}: give true, false or a number of days"
            )
        if not self.rewards:
            raise ValueError("rewards is empty: name at least one component, such as accuracy: 1.0")
        return self
