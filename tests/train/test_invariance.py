"""Layout and micro-batches change no gradient, to 1e-10 in float64."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from curate.train.advantages import group_advantages
from curate.train.losses import PolicyTokens, policy_loss, row_weights
from curate.train.model.layout import PromptCompletion, padded_layout, tree_layout
from tests.train.conftest import DEVICE, policy_of

ADVANTAGES = torch.tensor([1.0, -0.5, 0.3, 0.8, -1.0, 0.4, 0.7, -0.2], dtype=torch.float64)


@pytest.fixture(scope="module")
def policy(tiny_dir: Path) -> Any:
    return policy_of(tiny_dir)


def gradients(
    policy: Any,
    sequences: list[PromptCompletion],
    cuts: list[list[int]],
    lay: Any,
    normalisation: str,
) -> Any:
    """Return loss and gradients of the clipped objective with KL, for random old and reference
    policies.
    """
    policy.model.zero_grad()
    lengths = torch.tensor([len(s.completion) for s in sequences])
    weights = row_weights(lengths, torch.ones(len(sequences), dtype=torch.bool), normalisation, 16)  # type: ignore[arg-type]
    starts = torch.cat([torch.zeros(1, dtype=torch.long), lengths.cumsum(0)])
    old = (
        torch.randn(
            int(lengths.sum()), generator=torch.Generator().manual_seed(3), dtype=torch.float64
        )
        * 0.2
    )
    total = 0.0
    for cut in cuts:
        layout = lay([sequences[i] for i in cut]).to(policy.device)
        new, row = policy.logprobs(layout)[0].cpu(), layout.row.cpu()
        # the position of each token within its row, whatever the order of rows in the layout
        within = torch.cat([torch.arange(int((row == r).sum())) for r in row.unique_consecutive()])
        shift = old[starts[torch.tensor(cut)][row] + within]
        tokens = PolicyTokens(
            new,
            row,
            ADVANTAGES[cut],
            weights[cut],
            old=new.detach() - shift,
            ref=new.detach() + shift,
        )
        part = policy_loss(tokens, beta=0.1).loss
        part.backward()
        total += part.item()
    return total, {
        n: p.grad.cpu() for n, p in policy.model.named_parameters() if p.grad is not None
    }


def same(a: Any, b: Any, tolerance: float = 1e-10) -> None:
    assert a[0] == pytest.approx(b[0], abs=tolerance)
    assert a[1].keys() == b[1].keys()
    assert max(float(g.abs().max()) for g in b[1].values()) > 1e-3, (
        "a test on zero gradients proves nothing"
    )
    for name, gradient in a[1].items():
        assert torch.allclose(gradient, b[1][name], rtol=0, atol=tolerance), name


SINGLE = [[i] for i in range(8)]
CUTS = {
    "8x1": SINGLE,
    "2x4": [[0, 1, 2, 3], [4, 5, 6, 7]],
    "1x8": [list(range(8))],
    "ragged": [[0], [1, 2, 3, 4, 5], [6, 7]],
}
LAYOUTS = {
    "tree": tree_layout,
    "right padding": padded_layout,
    "left padding": lambda s: padded_layout(s, side="left"),
}


@pytest.mark.parametrize("normalisation", ["grpo", "dr_grpo", "dapo"])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("cut", CUTS)
def test_micro_batches_and_layout_change_no_gradient(
    policy: Any, sequences: list[PromptCompletion], cut: str, layout: str, normalisation: str
) -> None:
    policy.model.set_attn_implementation("sdpa")
    # one sequence per call: no padding at all
    plain = gradients(policy, sequences, SINGLE, padded_layout, normalisation)
    policy.model.set_attn_implementation("curate_tree" if layout == "tree" else "sdpa")
    same(gradients(policy, sequences, CUTS[cut], LAYOUTS[layout], normalisation), plain)


@pytest.mark.parametrize("way", ["matmul_attention", "sdpa_attention"])
def test_both_ways_of_tree_attention_equal_plain_attention(
    policy: Any, sequences: list[PromptCompletion], way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from curate.train.model import attention

    policy.model.set_attn_implementation("sdpa")
    plain = gradients(policy, sequences, SINGLE, padded_layout, "dapo")
    policy.model.set_attn_implementation("curate_tree")
    monkeypatch.setattr(attention, "matmul_attention", getattr(attention, way))
    same(gradients(policy, sequences, CUTS["1x8"], tree_layout, "dapo"), plain)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_fused_attention_keeps_each_token_once(
    sequences: list[PromptCompletion], dtype: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from curate.train.model import attention

    layout = tree_layout(sequences)
    tree, g = attention.tree_index(layout), torch.Generator().manual_seed(0)
    given = [torch.randn(heads, layout.tokens, 16, generator=g).to(dtype) for heads in (4, 2, 2)]
    sizes: list[tuple[int, int]] = []
    forget = attention.RegatheredTensors.forget

    def watched(self: Any, ours: Any) -> None:
        kept = list(self.saved)
        before = sum(t.nbytes for t, _ in kept)
        forget(self, ours)
        sizes.append((before, sum(t.nbytes for t, _ in kept if t is not None)))

    def run(way: Any, again: bool) -> Any:
        tree.regather = again
        q, k, v = (x.clone().requires_grad_() for x in given)
        out = way(q, k, v, tree, 0.25)
        out.float().square().sum().backward()
        return [out.detach(), q.grad, k.grad, v.grad]

    monkeypatch.setattr(attention.RegatheredTensors, "forget", watched)
    plain = run(attention.matmul_attention, True)
    for again in (True, False):  # False: as inside a checkpoint, which has separate hooks
        for one, other in zip(plain, run(attention.sdpa_attention, again), strict=True):
            assert (one - other).float().norm() <= (
                1e-5 if dtype == torch.float32 else 2e-2
            ) * one.float().norm()
        if again:
            before, after = (sum(column) for column in zip(*sizes, strict=True))
            assert (
                after < 0.4 * before
            )  # the mask and a number per query, a visible part with 16 dimensions per head
    assert before > 0


def test_a_tree_computes_shared_tokens_once(sequences: list[PromptCompletion]) -> None:
    layout = tree_layout(sequences)
    # the head once, three tails, and each completion without its last token, which predicts nothing
    assert layout.tokens == 12 + (5 + 2 + 9) + sum(len(s.completion) - 1 for s in sequences)
    assert padded_layout(sequences).tokens == 8 * max(
        len(s.prompt) + len(s.completion) for s in sequences
    )


@pytest.mark.parametrize(
    "odd",
    [
        [PromptCompletion([5], [6])],
        [PromptCompletion([5, 6, 7], [8])]
        * 3,  # the same prompt and one-token completions: no segment below the prompt
        [PromptCompletion([5, 6], [7, 8]), PromptCompletion([5, 6], [7, 8])],
        [
            PromptCompletion(list(range(10, 20)), [7, 8]),
            PromptCompletion(list(range(10, 18)), [9, 4, 5]),
        ],  # one prompt begins the other
        [PromptCompletion([5, 6], [7, 8]), PromptCompletion([9], [4, 5, 6])],
        [PromptCompletion([5, 6], []), PromptCompletion([5, 6], [7, 8, 9])],
    ],
)
def test_odd_shapes(policy: Any, odd: list[PromptCompletion]) -> None:
    policy.model.set_attn_implementation("curate_tree")
    tree = tree_layout(odd).to(policy.device)
    values = policy.logprobs(tree)[0]
    policy.model.set_attn_implementation("sdpa")
    plain = padded_layout(odd).to(policy.device)
    expected = policy.logprobs(plain)[0]
    for row in range(len(odd)):
        assert torch.allclose(values[tree.row == row], expected[plain.row == row], atol=1e-12)
        assert tree.target[tree.row == row].tolist() == list(odd[row].completion)


def test_an_empty_prompt_is_refused() -> None:
    with pytest.raises(ValueError, match="prompt without tokens"):
        tree_layout([PromptCompletion([], [1, 2])])


def test_gradient_checkpointing_changes_nothing(
    tiny_dir: Path, sequences: list[PromptCompletion]
) -> None:
    plain = gradients(policy_of(tiny_dir), sequences, CUTS["2x4"], tree_layout, "grpo")
    same(
        gradients(
            policy_of(tiny_dir, gradient_checkpointing=True),
            sequences,
            CUTS["2x4"],
            tree_layout,
            "grpo",
        ),
        plain,
    )


def test_zero_advantage_group_gives_zero_gradient(
    policy: Any, sequences: list[PromptCompletion]
) -> None:
    policy.model.set_attn_implementation("curate_tree")
    policy.model.zero_grad()
    layout = tree_layout(sequences[:3]).to(policy.device)
    advantage = group_advantages(torch.tensor([0.1, 0.1, 0.1]), torch.tensor([0, 0, 0]))
    weight = row_weights(torch.tensor([3, 1, 9]), torch.ones(3, dtype=torch.bool))
    new = policy.logprobs(layout)[0].cpu()
    policy_loss(PolicyTokens(new, layout.row.cpu(), advantage, weight)).loss.backward()
    assert all(
        float(p.grad.abs().max()) == 0.0 for p in policy.model.parameters() if p.grad is not None
    )


def test_micro_batches_count_shared_tokens_once(sequences: list[PromptCompletion]) -> None:
    from curate.train.model.layout import micro_batches

    for limit in (1, 30, 40, 60, 1000):
        cuts = micro_batches(sequences, limit)
        assert [i for cut in cuts for i in cut] == list(range(8))
        for cut in cuts:
            held = tree_layout([sequences[i] for i in cut]).tokens
            assert held <= limit or len(cut) == 1
    assert len(micro_batches(sequences, 1)) == 8
    assert len(micro_batches(sequences, 1000)) == 1


def test_micro_batches_of_padded_rows_count_padding() -> None:
    from curate.train.model.layout import micro_batches

    rows = [PromptCompletion([1] * 60, [2] * n) for n in (5, 40, 8, 39, 7)]
    for cut in micro_batches(rows, 220, lambda length: (0, True)):
        assert padded_layout([rows[i] for i in cut]).tokens <= 220
    apart = micro_batches(rows, 10_000, lambda length: (int(length > 70), False))
    assert sorted(map(sorted, apart)) == [[0, 2, 4], [1, 3]]


def test_ranks_get_whole_groups_of_about_as_many_tokens() -> None:
    from curate.train.ranks import Ranks

    rows = [PromptCompletion([g] * 4096, [0] * 512) for g in range(32) for _ in range(16)]
    for size in (2, 8, 16):
        dealt = [Ranks(rank, size).deal(list(range(512)), rows) for rank in range(size)]
        assert sorted(i for part in dealt for i in part) == list(range(512))
        tokens = [tree_layout([rows[i] for i in part]).tokens for part in dealt]
        assert max(tokens) == min(tokens)
        # one rank computes 5.65 times fewer tokens than rows without sharing; so do all of them
        assert 512 * (4096 + 511) / sum(tokens) > 5.5
    few = [Ranks(rank, 4).deal(list(range(16)), rows[:16]) for rank in range(4)]
    assert [len(part) for part in few] == [4, 4, 4, 4], "one group is split when ranks would idle"


@pytest.mark.skipif(DEVICE == "cpu", reason="needs a GPU: CURATE_TEST_DEVICE=cuda")
def test_a_gpu_gives_the_gradients_of_the_cpu(
    tiny_dir: Path, sequences: list[PromptCompletion]
) -> None:
    policies = [policy_of(tiny_dir, device=device) for device in (DEVICE, "cpu")]
    ours, wanted = (gradients(p, sequences, CUTS["1x8"], tree_layout, "dapo") for p in policies)
    same(ours, wanted, 1e-5)  # rotary tables are computed in fp32
