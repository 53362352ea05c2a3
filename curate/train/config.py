"""Configs of the trainers. Unknown keys are errors; every default states its source."""

from __future__ import annotations

from typing import Any, Literal, TypeVar

from pydantic import Field, field_validator, model_validator

from curate.annotate.judge import JudgeConfig
from curate.config import Config
from curate.prompts.forms import FormName
from curate.prompts.render import TemplateName

AnyConfig = TypeVar("AnyConfig", bound=Any)


def refuse_dropout(config: AnyConfig) -> AnyConfig:
    """Raise ValueError for dropout in adapters, for losses that compare log-probs."""
    if config.compute.lora and config.compute.lora.dropout:
        raise ValueError(
            "compute.lora.dropout must be 0: the loss compares log-probs, which dropout "
            "changes by chance"
        )
    return config


class LoraConfig(Config):
    """Low-rank adapters instead of full fine-tuning; they are merged when a model is written."""

    rank: int = Field(default=16, ge=1)
    """Rank of the adapters."""
    alpha: int = Field(default=32, ge=1)
    """An adapter adds alpha / rank times B A."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Dropout before the adapters."""
    targets: list[str] | Literal["all-linear"] = "all-linear"
    """Names of the adapted modules. `all-linear`: every linear layer except the head, which leaves
    out fused experts and routers.
    """


class OptimConfig(Config):
    """AdamW with warm-up and a cosine to a floor. The rate is the same for all parameters."""

    lr: float = Field(default=5e-5, gt=0)
    """Highest learning rate (the R1 report's SFT: 5e-5)."""
    floor: float = Field(default=0.1, ge=0, le=1)
    """Last learning rate as a share of lr (the report: 5e-5 to 5e-6)."""
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    """Course of the learning rate after the warm-up."""
    warmup: float = Field(default=0.03, ge=0)
    """Share of all steps if below 1, else number of steps."""
    betas: tuple[float, float] = (0.9, 0.95)
    """Decay of AdamW's two moments per step."""
    epsilon: float = Field(default=1e-8, gt=0)
    """AdamW's epsilon."""
    weight_decay: float = Field(default=0.0, ge=0)
    """Decay of matrices; norms and biases have none."""
    max_grad_norm: float = Field(default=1.0, gt=0)
    """Gradients with a larger norm are scaled down to it."""


class ModelConfig(Config):
    """Precision, layout and placement of the model. Weights are fp32 whatever `precision` is."""

    precision: Literal["bf16", "fp32", "auto"] = "auto"
    """Number format of matrix products; auto: bf16 if the processor multiplies it natively."""
    layout: Literal["tree", "padded"] = "tree"
    """`tree`: no padding and shared prefixes computed once, if the model's attention allows it;
    `padded`: plain rows.
    """
    lora: LoraConfig | None = None
    """Train adapters only."""
    gradient_checkpointing: bool = False
    """Recompute layers in the backward pass: slower, less memory."""
    micro_batch_tokens: int = Field(default=1280, ge=1)
    """Tokens that go through the model at once (shared prefixes counted once), which bounds the
    memory of a step.
    """
    logprob_chunk: int = Field(default=1024, ge=1)
    """Positions whose logits are computed together, in tiles of 8 MiB."""
    fp32_head: bool = False
    """Logits in fp32: log-probs exact to 1e-5, at three times the cost of the head on a CPU."""
    device: str = "auto"
    """`auto`: this rank's GPU, else the CPU."""
    fsdp: bool = True
    """With torchrun, shard weights and optimizer (FSDP2); false: every rank holds all of them."""


class CheckpointConfig(Config):
    """Frequency of checkpoints, and the models to keep."""

    every: int = Field(default=5, ge=0)
    """Steps between checkpoints that a killed run resumes from; 0: only at the end."""
    keep_last: int = Field(default=1, ge=1)
    """Number of checkpoints to keep."""
    keep_best: bool = True
    """Keep the policy of the best evaluation, the start included; later stages use it."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Dtype of the finished model; auto: that of the model it started from."""


class Mixture(Config):
    """One corpus in a mixture."""

    corpus: str
    """Name or name@version."""
    weight: float = Field(default=1.0, gt=0)
    """Multiplies the loss of its rows."""
    share: float = Field(default=1.0, gt=0)
    """Rows per epoch as a share of the corpus; above 1 rows are repeated."""


Tracker = Literal["tensorboard", "wandb", "trackio"]


class SFTConfig(Config):
    """`curate train sft`: supervised fine-tuning on a corpus, completion tokens only."""

    name: str = "sft"
    """Name of the model and of its metrics."""
    model: str
    """Directory in Hugging Face format."""
    corpus: str | list[Mixture]
    """Name, name@version, or a mixture."""
    domain_weights: dict[str, float] = {}
    """Multiplies the loss of the rows of a domain."""
    order: Literal["random", "difficulty"] = "random"
    """`difficulty`: easiest first in the first epoch."""
    epochs: float = Field(default=1.0, gt=0)
    """Passes over the corpus (the report: 2-3)."""
    batch_size: int = Field(default=16, ge=1)
    """Examples per step."""
    max_length: int = Field(default=4096, ge=2)
    """Tokens of prompt and completion."""
    too_long: Literal["truncate", "skip", "fail"] = "skip"
    """Treatment of rows longer than max_length."""
    trackers: list[Tracker] = []
    """Services that get the metrics, too."""
    seed: int = 0
    """Seed of the order of examples, of adapters and of dropout."""
    optim: OptimConfig = OptimConfig()
    compute: ModelConfig = ModelConfig()
    checkpoint: CheckpointConfig = CheckpointConfig(every=50)


class DistillConfig(SFTConfig):
    """`curate train distill` on a corpus; `kind: on-policy` takes the keys of GRPO instead."""

    name: str = "distill"
    """Name of the model and of its metrics."""
    teacher: str
    """Directory in Hugging Face format."""
    kind: Literal["sequences", "forward", "reverse"] = "forward"
    """`sequences`: SFT on text that the teacher wrote, the report's way, with any two tokenizers.
    `forward`: KL(teacher || student); `reverse`: KL(student || teacher). These compare logits, so
    both models need the same tokenizer.
    """
    mix: float = Field(default=0.0, ge=0, le=1)
    """Share of the plain SFT loss."""
    temperature: float = Field(default=1.0, gt=0)
    """Temperature of both distributions in the KL."""


class PairsConfig(Config):
    """Selection of pairs among traces of one prompt: SQL expressions over one row of
    `annotated`.
    """

    where: str | None = None
    """Condition on both traces of a pair."""
    chosen: str = Field(default="verdict = 'correct'", min_length=1)
    """Traces to prefer."""
    rejected: str = Field(default="verdict = 'wrong'", min_length=1)
    """Rejected traces. A trace that `chosen` accepts as well is chosen."""
    by: str | None = None
    """Rank of the traces of a prompt: the highest chosen one is paired with the lowest rejected
    one, and so on; null: by chance.
    """
    per_prompt: int = Field(default=1, ge=1)
    """Maximum number of pairs per prompt; no trace is in two pairs."""


class DPOConfig(Config):
    """`curate train dpo`: direct preference optimisation on pairs of traces."""

    name: str = "dpo"
    """Name of the model and of its metrics."""
    model: str
    """Directory in Hugging Face format."""
    traces: list[str] = []
    """`family` or `family/version` of the table traces; empty: all."""
    pairs: PairsConfig = PairsConfig()
    beta: float = Field(default=0.1, gt=0)
    """Strength of the bond to the reference (the paper's, section 6: 0.1)."""
    nll: float = Field(default=0.0, ge=0)
    """Weight of the SFT loss on the chosen traces (the Llama 3 report, 4.1.4: 0.2)."""
    reference: str | None = None
    """Model directory of the reference; null: the start."""
    epochs: float = Field(default=1.0, gt=0)
    """Passes over the pairs."""
    batch_size: int = Field(default=16, ge=1)
    """Pairs per step (the paper: 64)."""
    max_length: int = Field(default=4096, ge=2)
    """Tokens of prompt and completion; pairs with a longer one are skipped."""
    trackers: list[Tracker] = []
    """Services that get the metrics, too."""
    seed: int = 0
    """Seed of the pairs, of their order and of adapters."""
    optim: OptimConfig = OptimConfig(lr=1e-6, schedule="linear", warmup=0.1, floor=0)
    """The learning rate is that of the paper (appendix B)."""
    compute: ModelConfig = ModelConfig()
    checkpoint: CheckpointConfig = CheckpointConfig(every=50)

    @model_validator(mode="after")
    def _no_dropout(self) -> DPOConfig:
        return refuse_dropout(self)


class RewardComponent(Config):
    """One term of a reward: weight times the value of a named component (see curate/rewards.py)."""

    weight: float = 1.0
    """Multiplies the value."""
    options: dict[str, Any] = {}
    """Arguments of the component."""


class LossConfig(Config):
    """The GRPO objective; see `curate.train.losses.policy_loss` for the formulas."""

    normalisation: Literal["grpo", "dr_grpo", "dapo"] = "grpo"
    """`grpo`: mean over rows of the mean over tokens; `dapo`: mean over all tokens; `dr_grpo`:
    divided by a constant length.
    """
    clip_low: float = Field(default=0.2, ge=0, le=1)
    """Ratios are clipped at 1 - clip_low; 1: no lower end."""
    clip_high: float = Field(default=0.2, ge=0)
    """Ratios are clipped at 1 + clip_high (the report's first RL for R1: 10)."""
    objective: Literal["clip", "cispo"] = "clip"
    """`clip`: PPO's clipped minimum; `cispo`: clipped ratios as detached weights, so that no token
    loses its gradient.
    """
    ratio: Literal["token", "sequence"] = "token"
    """`sequence`: one ratio per completion (GSPO)."""
    beta: float = Field(default=0.0, ge=0)
    """Weight of the KL term; 0 loads no reference (the report's R1-Zero: 0.001)."""
    kl: Literal["k1", "k2", "k3"] = "k3"
    """Estimator of the KL term."""
    reference: str | None = None
    """Model directory of the reference, such as a teacher; null: the start."""
    reference_every: int = Field(default=0, ge=0)
    """Rounds between replacements of the reference by the policy (the report: 400 steps); 0: never.
    """
    sampler_cap: float | None = Field(default=2.0, gt=0)
    """Cap of truncated importance sampling between engine and trainer; null: no correction."""
    sampler_mask: tuple[float, float] | None = None
    """Drop tokens whose trainer's probability over the engine's is outside of this range; null:
    none.
    """
    mask_level: Literal["token", "sequence"] = "token"
    """`sequence`: the mean over a completion decides for all its tokens."""
    correct_kl: bool = False
    """Weight the KL term by the ratio to the policy that sampled: the gradient is that of
    KL(policy || reference), also with more than one update per round.
    """
    entropy_bonus: float = Field(default=0.0, ge=0)
    """Weight of the entropy of the next-token distributions, in nats, that the loss rewards."""
    advantage: Literal["group", "batch", "none"] = "group"
    """Standard deviation that rewards are divided by."""
    ddof: Literal[0, 1] = 1
    """1: deviation of the sample; 0: of the population."""
    mask_truncated: bool = False
    """Rows cut off by the length limit get no gradient, but count in the mean of their group."""


class TrainSampling(Config):
    """Sampling settings of rollouts.

    There is no top_p or top_k: log-probs of truncated sampling are not the policy's.
    """

    temperature: float = Field(default=1.0, gt=0)
    """Temperature of the rollouts (the report: 1)."""
    max_tokens: int = Field(default=256, ge=1)
    """Length limit of a completion."""
    stop: list[str] = []
    """Strings that end a completion."""


class EvalConfig(Config):
    """pass@1, pass@k and cons@k on held-out problems during training."""

    every: int = Field(default=0, ge=0)
    """Rounds between evaluations; 0: never."""
    samples: int = Field(default=4, ge=1)
    """Completions per problem, k."""
    temperature: float = Field(default=0.6, ge=0)
    """Temperature of sampling (the report's)."""
    top_p: float = Field(default=0.95, gt=0, le=1)
    """top_p of sampling (the report's)."""
    patience: int = Field(default=0, ge=0)
    """Stop after this many evaluations without a better pass@1; 0: never."""


class ReplayConfig(Config):
    """Stored rollouts that a run trains on, alone or next to fresh ones."""

    run: str
    """Run that sampled them: its id or the beginning of it, or the name of a training (its newest
    run). `own`: earlier rounds of this run.
    """
    fresh: int = Field(default=0, ge=0)
    """Problems per round that are sampled anew; 0: all rollouts are stored ones, and no engine is
    opened. Round N then trains on the N-th stored round.
    """
    staleness: int | None = Field(default=None, ge=0)
    """With fresh ones: optimizer steps between the policy that sampled and this one, at most; null:
    any number.
    """
    min_ess: float = Field(default=0.2, ge=0, le=1)
    """Stop before a step whose effective sample size is a smaller share of its completions. Ours;
    samplers usually act below 0.5 (Liu and Chen 1998).
    """


class GRPOConfig(Config):
    """`curate train grpo`: reinforcement learning from verifiable rewards."""

    name: str = "grpo"
    """Name of the model, its traces and metrics."""
    model: str
    """Directory in Hugging Face format."""
    template: TemplateName = "r1-zero"
    """Prompt template."""
    form: FormName = "r1-zero"
    """Requested output form."""
    steps: int = Field(default=100, ge=1)
    """Rounds of rollouts; each makes mini_batches * epochs optimizer steps."""
    prompts: int = Field(default=16, ge=1)
    """Problems per round (the report: 32)."""
    samples: int = Field(default=8, ge=2)
    """Completions per problem (the report: 16)."""
    mini_batches: int = Field(default=1, ge=1)
    """Optimizer steps per round and epoch (the report: 16)."""
    epochs: int = Field(default=1, ge=1)
    """Passes over a round."""
    dynamic_sampling: int = Field(default=0, ge=0)
    """Maximum number of fresh rounds to replace groups of equal rewards (DAPO); 0: off."""
    rewards: dict[str, float | RewardComponent] = {"accuracy": 1.0, "format": 0.2}
    """Weights of reward components."""
    sampling: TrainSampling = TrainSampling()
    loss: LossConfig = LossConfig()
    optim: OptimConfig = OptimConfig(lr=3e-6, schedule="constant", warmup=0)
    """The learning rate is that of the report's R1-Zero."""
    compute: ModelConfig = ModelConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    evaluation: EvalConfig = EvalConfig()
    show_every: int = Field(default=10, ge=0)
    """Rounds between printed completions; 0: never."""
    keep_tokens: bool | float = True
    """Token ids and log-probs. true: in the traces, permanently; false: next to the checkpoints
    until one covers them; a number: next to the checkpoints for that many days.
    """
    replay: ReplayConfig | None = None
    """Train on stored rollouts: a run, or a group of settings; null: sample all rollouts."""
    trackers: list[Tracker] = []
    """Services that get the metrics, too."""
    seed: int = 0
    """Seed of sampling, of the order of problems and of adapters."""

    @field_validator("replay", mode="before")
    @classmethod
    def _run_alone(cls, value: Any) -> Any:
        return {"run": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _consistent(self) -> GRPOConfig:
        if self.replay:
            self._check_replay(self.replay)
        if self.prompts % self.mini_batches:
            raise ValueError(
                f"prompts ({self.prompts}) must be a multiple of mini_batches "
                f"({self.mini_batches}): a group is never cut in two"
            )
        if self.keep_tokens < 0:
            raise ValueError(
                f"keep_tokens is {self.keep_tokens}: give true, false or a number of days"
            )
        if not self.rewards:
            raise ValueError("rewards is empty: name at least one component, such as accuracy: 1.0")
        return refuse_dropout(self)

    def _check_replay(self, replay: ReplayConfig) -> None:
        if replay.fresh >= self.prompts:
            raise ValueError(
                f"replay.fresh ({replay.fresh}) leaves none of the {self.prompts} problems of a "
                "round to stored rollouts: lower it, or leave replay out"
            )
        if replay.run == "own" and (not replay.fresh or self.keep_tokens is not True):
            raise ValueError(
                "replay.run=own needs replay.fresh of at least 1, and keep_tokens=true: the run "
                "trains again on token ids that it sampled and stored"
            )


class RescoreConfig(Config):
    """`curate rescore`: other rewards for the stored rollouts of a run. Nothing is sampled."""

    name: str = "rescore"
    """Name in the table `rescored`."""
    run: str
    """Run that sampled them: its id or the beginning of it, or the name of a training (its newest
    run).
    """
    rewards: dict[str, float | RewardComponent]
    """Weights of reward components, which override those of the run."""
    advantage: Literal["group", "batch", "none"] = "group"
    """Standard deviation that rewards are divided by; the run's by default."""
    ddof: Literal[0, 1] = 1
    """1: deviation of the sample; 0: of the population; the run's by default."""
    verifier: str | None = None
    """Verifier of all problems; null: each problem's own, in its current version."""
    problems: str | None = None
    """Version of problems whose references count; null: the newest of each problem."""
    judge: JudgeConfig | None = None
    """Model whose verdict counts if the verifier's is unverifiable."""


class InfluenceConfig(Config):
    """`curate influence`: influence of traces on target problems, by gradients.

    Experimental: see the table in docs/replay.md.
    """

    name: str = "influence"
    """Name in the table `influences`."""
    model: str
    """Directory in Hugging Face format: the weights at which gradients are taken."""
    traces: list[str]
    """Datasets of the table `traces` to measure."""
    problems: str
    """Stored problems with worked solutions, which are the targets."""
    split: str = "held-out"
    """Split of the targets. Evaluate on other problems, since these influence the choice."""
    targets: int = Field(default=64, ge=1)
    """Number of targets, the last ones of the split, as in an evaluation during training."""
    template: TemplateName = "r1-zero"
    """Prompt template of the targets."""
    form: FormName = "r1-zero"
    """Output form of the targets."""
    side: int = Field(default=24, ge=2, le=256)
    """A sketch has side x side numbers."""
    precondition: bool = True
    """Divide gradients of traces by the root of the mean square over the targets, parameter by
    parameter, as a step of AdamW does with that of earlier steps.
    """
    max_length: int = Field(default=4096, ge=2)
    """Longer rows are left out."""
    compute: ModelConfig = ModelConfig()
    seed: int = 0
    """Of the projections."""
