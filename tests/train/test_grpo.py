"""GRPO on tiny models: learning, the plain objective, resuming, stored rows, and bad input."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from curate.engines import EngineConfig
from curate.engines.transformers import TransformersEngine
from curate.errors import CurateError, UsageError
from curate.records import Completion, Problem, Request, Verdict
from curate.train.config import GRPOConfig
from curate.train.grpo import train_grpo
from curate.train.rollouts import problem_stream
from curate.warehouse import Warehouse
from tests.train.conftest import DEVICE

EXACT = {"precision": "fp32", "device": DEVICE}
PROBLEMS = [
    Problem(question=f"say {c}", reference=c, verifier="exact", problem_id=f"p{c}")
    for c in "abcdefgh"
]


class ScriptedVerifier:
    """Replaces the verifier pool: the given rule decides."""

    def __init__(self, rule: Any) -> None:
        self.rule = rule
        self.forms: set[str | None] = set()

    def verify_batch(
        self, problems: list[Problem], completions: list[str], forms: list[str | None] | None = None
    ) -> list[Verdict]:
        self.forms |= set(forms or [None])
        return [
            Verdict(self.rule(p, c), extracted=c[:8], verifier="test", verifier_version="1")
            for p, c in zip(problems, completions, strict=True)
        ]

    def judge_answers(self, problems: list[Problem], answers: list[str]) -> list[Verdict]:
        """Compare answers with references literally, as consensus needs."""
        return [
            Verdict("correct" if p.reference == a else "wrong", extracted=a)
            for p, a in zip(problems, answers, strict=True)
        ]


def by_chance(problem: Problem, text: str) -> str:
    return "correct" if sum(map(ord, text)) % 3 == 0 else "wrong"


class Counting:
    """An engine that counts its requests."""

    def __init__(self, engine: Any) -> None:
        self.engine, self.requests, self.name = engine, 0, engine.name

    def generate(self, requests: Iterable[Request]) -> Iterator[Completion]:
        for done in self.engine.generate(requests):
            self.requests += 1
            yield done

    def update_weights(self, path: Path) -> str:
        return self.engine.update_weights(path)

    def sleep(self) -> None:
        self.engine.sleep()

    def wake(self) -> None:
        self.engine.wake()


@pytest.fixture
def engine(tiny_dir: Path) -> Any:
    return Counting(
        TransformersEngine(EngineConfig(name="transformers", dtype="float32"), tiny_dir)
    )


def config(tiny_dir: Path, **changes: Any) -> GRPOConfig:
    data: dict[str, Any] = {
        "model": str(tiny_dir),
        "template": "plain",
        "form": "plain",
        "steps": 3,
        "prompts": 4,
        "samples": 4,
        "rewards": {"accuracy": 1.0},
        "sampling": {"max_tokens": 6},
        "optim": {"lr": 1e-3, "schedule": "constant", "warmup": 0},
        "compute": EXACT,
        "checkpoint": {"every": 1},
    }
    return GRPOConfig.model_validate(data | changes)


def weights_of(path: Path) -> dict[str, Any]:
    from safetensors.torch import load_file

    return load_file(path / "model.safetensors")


def same_weights(a: Path, b: Path) -> bool:
    """Whether weights agree bit for bit, as on a CPU; a GPU sums in any order."""
    if DEVICE != "cpu":
        pytest.skip("weights are the same bit for bit on a CPU only; all before that was run")
    first, second = weights_of(a), weights_of(b)
    return first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)


def test_rollouts_are_stored_with_everything_that_determined_them(
    tiny_dir: Path, tmp_path: Path, engine: Any
) -> None:
    wh = Warehouse(tmp_path)
    result = train_grpo(config(tiny_dir), wh, engine, ScriptedVerifier(by_chance), PROBLEMS)
    assert engine.requests == 3 * 4 * 4
    rows = wh.sql(
        """SELECT t.*, r.reward, r.advantage, r.components, v.verdict
        FROM traces t JOIN rollouts r USING (trace_id)
        JOIN verdicts v USING (trace_id) ORDER BY policy_step, problem_id, sample_index"""
    )
    assert rows.height == 48
    assert rows["trace_id"].n_unique() == 48
    assert sorted(rows["policy_step"].unique()) == [0, 1, 2]
    assert rows["model_hash"].n_unique() == 3, "each step samples from other weights"
    assert (rows["completion_token_ids"].list.len() == rows["logprobs"].list.len()).all()
    assert ((rows["verdict"] == "correct") == (rows["reward"] == 1.0)).all()
    mean = rows.group_by("policy_step", "problem_id").agg(_mean())
    assert mean["advantage"].abs().max() < 1e-9
    names = set(
        wh.sql("SELECT DISTINCT name FROM metrics WHERE run_id = ?", [result.run_id])["name"]
    )
    assert names >= {
        "reward",
        "accuracy",
        "entropy",
        "clip_low",
        "clip_high",
        "zero_variance",
        "truncated",
        "mean_length",
    }
    assert names >= {"mass_accuracy", "mass_equal"}
    assert names >= {"mismatch", "language_share", "reflections", "loss", "grad_norm", "lr"}
    again = train_grpo(config(tiny_dir), wh, engine, ScriptedVerifier(by_chance), PROBLEMS)
    assert again.skipped
    assert engine.requests == 48


def _mean() -> Any:
    import polars as pl

    return pl.col("advantage").mean()


def test_sampled_logprobs_are_the_trainers(tiny_dir: Path, tmp_path: Path, engine: Any) -> None:
    for temperature in (1.0, 0.7):
        # Three rounds: the last one samples from weights that have moved, and reached the engine.
        settings = config(tiny_dir, steps=3, sampling={"max_tokens": 8, "temperature": temperature})
        metrics = train_grpo(
            settings, Warehouse(tmp_path), engine, ScriptedVerifier(by_chance), PROBLEMS
        ).metrics
        assert metrics["mismatch"] < 1e-5
        assert metrics["ratio"] == pytest.approx(1.0)


def killed(at: int) -> Any:
    def progress(step: int, total: int, metrics: dict[str, float]) -> None:
        if step == at:
            raise KeyboardInterrupt

    return progress


@pytest.mark.parametrize(
    "changes",
    [
        {"checkpoint": {"every": 2}},
        {"checkpoint": {"every": 2}, "loss": {"beta": 0.1}, "mini_batches": 2, "epochs": 2},
        {
            "checkpoint": {"every": 1},
            "compute": EXACT | {"lora": {"rank": 4}},
            "loss": {"beta": 0.1},
        },
        {"checkpoint": {"every": 0}, "keep_tokens": False, "dynamic_sampling": 1},
        {"checkpoint": {"every": 2}, "loss": {"beta": 0.1, "reference_every": 1}},
    ],
    ids=["plain", "minibatches", "lora", "private-tokens", "moving-reference"],
)
def test_a_killed_run_ends_with_the_same_weights_bit_for_bit(
    tiny_dir: Path, tmp_path: Path, engine: Any, changes: dict[str, Any]
) -> None:
    settings = config(tiny_dir, steps=4, **changes)
    whole, broken = Warehouse(tmp_path / "a"), Warehouse(tmp_path / "b")
    undisturbed = train_grpo(settings, whole, engine, ScriptedVerifier(by_chance), PROBLEMS)
    before, engine.requests = engine.requests, 0
    for at in (1, 3):
        with pytest.raises(KeyboardInterrupt):
            train_grpo(settings, broken, engine, ScriptedVerifier(by_chance), PROBLEMS, killed(at))
    # committed rows are not judged again: their verdicts could differ
    result = train_grpo(settings, broken, engine, ScriptedVerifier(by_chance), PROBLEMS)
    assert engine.requests == before, "committed rollouts are read back, not sampled again"
    assert same_weights(undisturbed.model_path, result.model_path)
    assert not same_weights(undisturbed.model_path, tiny_dir)
    query = (
        "SELECT step, name, value FROM metrics WHERE name NOT LIKE '%second%' ORDER BY step, name"
    )
    assert whole.sql(query).equals(broken.sql(query))


def test_a_kill_before_the_model_is_recorded_leaves_none_unrecorded(
    tiny_dir: Path, tmp_path: Path, engine: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from curate.train import runs

    def dies(*_: Any) -> None:
        raise KeyboardInterrupt

    settings, wh = config(tiny_dir, steps=2), Warehouse(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(runs, "record_model", dies)
        with pytest.raises(KeyboardInterrupt):
            train_grpo(settings, wh, engine, ScriptedVerifier(by_chance), PROBLEMS)
    result = train_grpo(settings, wh, engine, ScriptedVerifier(by_chance), PROBLEMS)
    assert not result.skipped
    assert wh.sql("SELECT run_id FROM models WHERE kind = 'grpo'")["run_id"].to_list() == [
        result.run_id
    ]
    assert not (result.model_path.parent / "rollout").exists()
    assert train_grpo(settings, wh, engine, ScriptedVerifier(by_chance), PROBLEMS).skipped


def test_a_kill_between_traces_and_rewards_judges_again_and_samples_nothing(
    tiny_dir: Path, tmp_path: Path, engine: Any
) -> None:
    wh = Warehouse(tmp_path)

    class Broken(ScriptedVerifier):
        def verify_batch(self, *_: Any, **__: Any) -> list[Verdict]:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_grpo(config(tiny_dir, steps=1), wh, engine, Broken(by_chance), PROBLEMS)
    assert engine.requests == 16
    train_grpo(config(tiny_dir, steps=1), wh, engine, ScriptedVerifier(by_chance), PROBLEMS)
    assert engine.requests == 16


def test_rollouts_are_judged_in_their_requested_form(
    tiny_dir: Path, tmp_path: Path, engine: Any
) -> None:
    judge = ScriptedVerifier(by_chance)
    settings = config(tiny_dir, steps=1, form="r1", evaluation={"every": 1, "samples": 1})
    train_grpo(settings, Warehouse(tmp_path), engine, judge, PROBLEMS[:4], held_out=PROBLEMS[4:])
    assert judge.forms == {"r1"}


def test_a_fall_of_accuracy_is_reported_once(tiny_dir: Path, tmp_path: Path, engine: Any) -> None:
    """Each round solves one of its eight problems less than the last: far more than chance
    explains.
    """
    rounds: list[int] = []

    class Worse(ScriptedVerifier):
        def verify_batch(self, problems: Any, completions: Any, forms: Any = None) -> Any:
            rounds.append(len(rounds))
            solved = {p.problem_id for p in PROBLEMS[: 8 - len(rounds)]}
            self.rule = lambda p, c: "correct" if p.problem_id in solved else "wrong"
            return super().verify_batch(problems, completions, forms)

    messages: list[str] = []
    wh = Warehouse(tmp_path)
    train_grpo(
        config(tiny_dir, steps=7, prompts=8, show_every=0),
        wh,
        engine,
        Worse(None),
        PROBLEMS,
        say=messages.append,
    )
    warnings = [message for message in messages if "accuracy of the rollouts falls" in message]
    assert len(warnings) == 1
    trend = wh.sql("SELECT value FROM metrics WHERE name = 'trend' ORDER BY step")["value"]
    assert trend.is_sorted(descending=True)
    assert trend[-1] < -3


def test_unverifiable_and_equal_rewards_give_no_gradient(
    tiny_dir: Path, tmp_path: Path, engine: Any
) -> None:
    for name, rule in (("u", lambda p, c: "unverifiable"), ("e", lambda p, c: "correct")):
        messages: list[str] = []
        result = train_grpo(
            config(tiny_dir),
            Warehouse(tmp_path / name),
            engine,
            ScriptedVerifier(rule),
            PROBLEMS,
            say=messages.append,
        )
        assert same_weights(result.model_path, tiny_dir)
        # reported at the first such round, counted in the result
        warnings = [m for m in messages if "has nothing to learn from" in m]
        assert len(warnings) == 1
        assert ("no rollout has a reward" in warnings[0]) == (name == "u")
        assert result.empty_rounds == result.counts["rounds"] > 1
    assert result.metrics["zero_variance"] == 1.0


def test_a_round_with_differing_rewards_is_not_warned_of(
    tiny_dir: Path, tmp_path: Path, engine: Any
) -> None:
    messages: list[str] = []
    settings = config(tiny_dir, steps=1)
    result = train_grpo(
        settings,
        Warehouse(tmp_path),
        engine,
        ScriptedVerifier(by_chance),
        PROBLEMS,
        say=messages.append,
    )
    assert not [m for m in messages if "nothing to learn" in m]
    assert result.empty_rounds == 0


def test_without_kl_leaving_out_zero_advantages_changes_nothing(
    tiny_dir: Path, tmp_path: Path, engine: Any
) -> None:
    """A negligible KL weight computes every row: same weights as the run that leaves rows out."""
    a = train_grpo(
        config(tiny_dir, steps=1),
        Warehouse(tmp_path / "a"),
        engine,
        ScriptedVerifier(by_chance),
        PROBLEMS,
    )
    b = train_grpo(
        config(tiny_dir, steps=1, loss={"beta": 1e-12}),
        Warehouse(tmp_path / "b"),
        engine,
        ScriptedVerifier(by_chance),
        PROBLEMS,
    )
    assert b.metrics["computed"] == 16
    assert a.metrics["loss"] == pytest.approx(b.metrics["loss"], abs=1e-6)
    assert a.metrics["grad_norm"] == pytest.approx(b.metrics["grad_norm"], rel=1e-4)


@pytest.mark.parametrize("limit", [1, 60])
@pytest.mark.parametrize("layout", ["tree", "padded"])
def test_micro_batches_and_layout_change_no_step(
    tiny_dir: Path, tmp_path: Path, engine: Any, limit: int, layout: str
) -> None:
    got = []
    for name, compute in (("a", {}), ("b", {"micro_batch_tokens": limit, "layout": layout})):
        settings = config(
            tiny_dir, steps=1, compute=EXACT | compute, loss={"normalisation": "dapo", "beta": 0.1}
        )
        got.append(
            train_grpo(
                settings, Warehouse(tmp_path / name), engine, ScriptedVerifier(by_chance), PROBLEMS
            ).metrics
        )
    for name in ("loss", "grad_norm", "entropy", "kl"):
        assert got[0][name] == pytest.approx(got[1][name], rel=1e-4, abs=1e-7), name


def test_dynamic_sampling_replaces_groups_of_equal_rewards(
    tiny_dir: Path, tmp_path: Path, engine: Any
) -> None:
    wh = Warehouse(tmp_path)

    def rule(problem: Problem, text: str) -> str:
        return (
            by_chance(problem, text)
            if problem.problem_id in ("pa", "pb", "pc", "pd")
            else "correct"
        )

    settings = config(tiny_dir, steps=1, samples=8, dynamic_sampling=3)
    result = train_grpo(settings, wh, engine, ScriptedVerifier(rule), PROBLEMS)
    assert result.metrics["zero_variance"] == 0.0
    assert result.metrics["computed"] == 4 * 8
    assert engine.requests > 4 * 8
    stored = wh.sql("SELECT count(*) AS n FROM rollouts")["n"][0]
    assert stored == engine.requests, "what was put aside is stored too"


def test_truncated_traces_can_be_masked(tiny_dir: Path, tmp_path: Path, engine: Any) -> None:
    settings = config(tiny_dir, steps=1, sampling={"max_tokens": 1}, loss={"mask_truncated": True})
    result = train_grpo(
        settings, Warehouse(tmp_path), engine, ScriptedVerifier(by_chance), PROBLEMS
    )
    assert result.metrics["truncated"] > 0.9
    assert result.metrics["computed"] <= 16 * (1 - result.metrics["truncated"]) + 1e-9


def test_evaluation_keeps_the_best_and_stops_without_improvement(
    tiny_dir: Path, tmp_path: Path, engine: Any
) -> None:
    held_out = [Problem(question="what", reference="x", verifier="exact", problem_id="held")]
    settings = config(tiny_dir, steps=9, evaluation={"every": 1, "patience": 2, "samples": 2})
    rule = lambda p, c: "wrong" if p.problem_id == "held" else by_chance(p, c)  # noqa: E731
    result = train_grpo(
        settings, Warehouse(tmp_path), engine, ScriptedVerifier(rule), PROBLEMS, held_out=held_out
    )
    assert (
        result.counts["rounds"] == 2
    )  # the start is the best at 0, and two rounds do not improve on it
    assert result.metrics["eval_pass@1"] == 0.0


def test_the_start_is_the_best_policy_if_training_improves_nothing(
    tiny_dir: Path, tmp_path: Path, engine: Any
) -> None:
    held_out = [Problem(question="what", reference="x", verifier="exact", problem_id="held")]
    evaluations: list[int] = []

    def rule(problem: Problem, text: str) -> str:
        if problem.problem_id != "held":
            return by_chance(problem, text)
        evaluations.append(1)
        return "correct" if len(evaluations) == 1 else "wrong"

    settings = config(tiny_dir, steps=2, evaluation={"every": 1, "samples": 1})
    wh = Warehouse(tmp_path)
    result = train_grpo(settings, wh, engine, ScriptedVerifier(rule), PROBLEMS, held_out=held_out)
    assert result.best_step == 0
    assert same_weights(result.chosen_path, tiny_dir)
    assert not same_weights(result.model_path, tiny_dir)
    again = train_grpo(settings, wh, engine, ScriptedVerifier(rule), PROBLEMS, held_out=held_out)
    assert (again.skipped, again.chosen_path) == (True, result.chosen_path)


def test_the_last_round_is_evaluated_whatever_the_interval(
    tiny_dir: Path, tmp_path: Path, engine: Any
) -> None:
    held_out = [Problem(question="what", reference="x", verifier="exact", problem_id="held")]
    settings = config(tiny_dir, steps=3, evaluation={"every": 2, "samples": 1})
    wh = Warehouse(tmp_path)
    train_grpo(settings, wh, engine, ScriptedVerifier(by_chance), PROBLEMS, held_out=held_out)
    steps = wh.sql("SELECT step FROM metrics WHERE name = 'eval_pass@1' ORDER BY step")["step"]
    assert steps.to_list() == [0, 2, 3]


def test_the_best_evaluation_is_kept(tiny_dir: Path, tmp_path: Path, engine: Any) -> None:
    held_out = [Problem(question="what", reference="x", verifier="exact", problem_id="held")]
    evaluations: list[int] = []

    def rule(problem: Problem, text: str) -> str:
        if problem.problem_id != "held":
            return by_chance(problem, text)
        evaluations.append(1)
        third = len(evaluations) == 3  # after two rounds
        return "correct" if third else "wrong"

    settings = config(tiny_dir, steps=4, evaluation={"every": 1, "samples": 1})
    wh = Warehouse(tmp_path)
    result = train_grpo(settings, wh, engine, ScriptedVerifier(rule), PROBLEMS, held_out=held_out)
    assert result.best_path is not None
    assert result.chosen_path == result.best_path
    assert not same_weights(result.best_path, result.model_path)
    models = wh.sql("SELECT step, path FROM models ORDER BY step")
    assert models["step"].to_list() == [2, 4], "both have a row, so that traces of either have one"
    assert [wh.root / path for path in models["path"]] == [result.best_path, result.model_path]
    two = train_grpo(
        config(tiny_dir, steps=2),
        Warehouse(tmp_path / "b"),
        engine,
        ScriptedVerifier(by_chance),
        PROBLEMS,
    )
    assert same_weights(result.best_path, two.model_path)


def test_a_non_finite_gradient_stops_with_step_and_traces(
    tiny_dir: Path, tmp_path: Path, engine: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from curate.train import grpo

    wh, plain, calls = Warehouse(tmp_path), grpo.policy_loss, []

    def broken(tokens: Any, **options: Any) -> Any:
        calls.append(1)
        out = plain(tokens, **options)
        if len(calls) == 2:
            out.loss = out.loss * float("nan")
        return out

    monkeypatch.setattr(grpo, "policy_loss", broken)
    with pytest.raises(
        CurateError, match=r"the loss of step 2 is not finite; its traces: [0-9a-f]{32}"
    ):
        train_grpo(config(tiny_dir), wh, engine, ScriptedVerifier(by_chance), PROBLEMS)
    monkeypatch.undo()
    assert (
        train_grpo(config(tiny_dir), wh, engine, ScriptedVerifier(by_chance), PROBLEMS).resumed_from
        == 1
    )


def test_failed_requests_are_stored_and_give_no_gradient(
    tiny_dir: Path, tmp_path: Path, engine: Any
) -> None:
    class Failing(Counting):
        def generate(self, requests: Iterable[Request]) -> Iterator[Completion]:
            for n, done in enumerate(super().generate(requests)):
                yield Completion(done.request_id, "", "error", error="lost") if n % 4 == 0 else done

    wh = Warehouse(tmp_path)
    result = train_grpo(
        config(tiny_dir, steps=1), wh, Failing(engine.engine), ScriptedVerifier(by_chance), PROBLEMS
    )
    assert result.metrics["failed"] == 0.25
    assert (
        wh.sql("SELECT count(*) AS n FROM rollouts WHERE reward IS NULL AND advantage = 0")["n"][0]
        == 4
    )


def test_bad_input(tiny_dir: Path, tmp_path: Path, engine: Any) -> None:
    with pytest.raises(UsageError, match="no problems"):
        train_grpo(config(tiny_dir), Warehouse(tmp_path), engine, ScriptedVerifier(by_chance), [])
    with pytest.raises(ValueError, match="multiple of mini_batches"):
        config(tiny_dir, mini_batches=3)
    with pytest.raises(ValueError, match="extra"):
        config(tiny_dir, learning_rate=1)
    with pytest.raises(UsageError, match="unknown reward"):
        train_grpo(
            config(tiny_dir, rewards={"acuracy": 1}),
            Warehouse(tmp_path),
            engine,
            ScriptedVerifier(by_chance),
            PROBLEMS,
        )


def test_the_stream_of_problems_is_endless_and_repeats_no_problem_in_a_round() -> None:
    whole = [
        p.problem_id for start in range(0, 16, 4) for p in problem_stream(PROBLEMS, 0, start, 4)
    ]
    assert sorted(whole[:8]) == sorted(whole[8:]) == sorted(p.problem_id for p in PROBLEMS)
    assert whole[:8] != whole[8:]
    shuffled = random.Random(1).sample(PROBLEMS, len(PROBLEMS))
    for start in range(30):
        drawn = problem_stream(PROBLEMS, 0, start, 5)
        assert len({p.problem_id for p in drawn}) == 5
        assert drawn == problem_stream(shuffled, 0, start, 5), (
            "the order of the input does not matter"
        )


@pytest.mark.slow
def test_a_tiny_model_learns_a_tiny_task_from_almost_none_to_almost_all(tmp_path: Path) -> None:
    """The first character must be the one in the question; at first all are about as likely."""
    from curate.engines.testing.tiny import make_tiny_model

    path = make_tiny_model(tmp_path / "model", hidden=64, layers=2, heads=2, scale=0.1)
    engine = TransformersEngine(EngineConfig(name="transformers", dtype="float32"), path)
    settings = config(
        path,
        steps=60,
        prompts=8,
        samples=16,
        sampling={"max_tokens": 2},
        optim={"lr": 3e-3, "schedule": "constant", "warmup": 0},
        checkpoint={"every": 0},
    )

    def rule(problem: Problem, text: str) -> str:
        return "correct" if text[:1] in "0123456789" and text else "wrong"

    accuracy: list[float] = []
    train_grpo(
        settings,
        Warehouse(tmp_path / "wh"),
        engine,
        ScriptedVerifier(rule),
        PROBLEMS,
        lambda s, t, m: accuracy.append(m["accuracy"]),
    )
    assert accuracy[0] < 0.25
    assert sum(accuracy[-5:]) / 5 > 0.95
