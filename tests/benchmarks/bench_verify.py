"""Checks per second of this verifier and of a loop over `math_verify.parse` + `verify`, on the same distinct pairs.

    python tests/benchmarks/bench_verify.py [--pairs 2000] [--rounds 3]

Three sets: plain numbers; a mixture of 80 % plain numbers, 15 % simple LaTeX and 5 % symbolic; all symbolic. Half of
the pairs of each set are right. Both see the same completions ("… \\boxed{…}") and the same references. The loop runs
in this process, as its users run it; the pool has its workers warm, its cache off, and one worker a core. The rounds of
both alternate over pairs that neither has seen, and the medians are compared. Repeated pairs, with the caches on, are
reported apart. Verdicts of both are compared with the known answer.
"""

from __future__ import annotations

import argparse
import logging
import random
import statistics
import time
from collections.abc import Callable

from curate.verify import VerifierPool

Pair = tuple[str, str, bool]  # reference, answer, right


def plain_number(rng: random.Random, n: int) -> Pair:
    """Integers, decimals, thousands separators, negative numbers; `n` makes every pair another one."""
    kind, value = rng.randrange(4), n * 7 + rng.randrange(1, 7)
    right = rng.random() < 0.5
    other = value if right else value + rng.choice((-3, 1, 10))
    if kind == 0:
        return str(value), str(other), right
    if kind == 1:
        return str(value / 8), str(other / 8), right
    if kind == 2:
        return str(1000 + value), f"{1000 + other:,}", right
    return str(-value), str(-other), right


def simple_latex(rng: random.Random, n: int) -> Pair:
    """Fractions, roots, multiples of pi, powers of ten, tuples."""
    kind, p, q = rng.randrange(5), n + 2, rng.randrange(3, 40)
    right = rng.random() < 0.5
    off = 0 if right else 1
    if kind == 0:
        return rf"\frac{{{p}}}{{{q}}}", rf"\dfrac{{{2 * (p + off)}}}{{{2 * q}}}", right
    if kind == 1:
        return rf"{p}\sqrt{{{q}}}", rf"\sqrt{{{q * (p + off) ** 2}}}", right
    if kind == 2:
        return rf"\frac{{{p}\pi}}{{{q}}}", rf"\frac{{{p + off}}}{{{q}}}\pi", right
    if kind == 3:
        return rf"{p}.5 \times 10^{{3}}", str(p * 1000 + 500 + off), right
    return rf"({p}, {q})", rf"\left({p}, {q + off}\right)", right


def symbolic(rng: random.Random, n: int) -> Pair:
    """Polynomials against their factors, quotients, trigonometric and logarithmic identities, equations."""
    kind, a, b = rng.randrange(5), n + 1, rng.randrange(2, 30)
    right = rng.random() < 0.5
    off = 0 if right else 1
    if kind == 0:
        return rf"(x+{a})(x+{b})", rf"x^2+{a + b}x+{a * b + off}", right
    if kind == 1:
        return rf"\frac{{x^2-{a * a}}}{{x-{a}}}", rf"x+{a + off}", right
    if kind == 2:
        return rf"{a}\sin(2x)+{b}", rf"{2 * (a + off)}\sin x\cos x+{b}", right
    if kind == 3:
        return rf"\ln({a}x^{{{b}}})", rf"\ln({a + off})+{b}\ln x", right
    return rf"y = {a}x + {b}", rf"{a}x - y + {b + off} = 0", right


def mixture(rng: random.Random, n: int) -> Pair:
    share = rng.random()
    return (plain_number if share < 0.80 else simple_latex if share < 0.95 else symbolic)(rng, n)


def made(kind: Callable[[random.Random, int], Pair], size: int) -> list[Pair]:
    rng = random.Random(kind.__name__)
    pairs = {pair[:2]: pair for pair in (kind(rng, n) for n in range(size))}
    return list(pairs.values())


def completion(answer: str) -> str:
    return rf"We work it out step by step. Therefore the result is \boxed{{{answer}}}."


def theirs(pairs: list[Pair]) -> list[bool]:
    from math_verify import parse, verify

    found = []
    for gold, answer, _ in pairs:
        try:
            found.append(bool(verify(parse(f"${gold}$"), parse(completion(answer)))))
        except Exception:
            found.append(False)
    return found


def ours(pool: VerifierPool, pairs: list[Pair]) -> list[bool]:
    verdicts = pool.verify_answers([gold for gold, _, _ in pairs], [completion(answer) for _, answer, _ in pairs])
    return [verdict.verdict == "correct" for verdict in verdicts]


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--pairs", type=int, default=2000)
    options.add_argument("--rounds", type=int, default=3)
    arguments = options.parse_args()
    logging.disable(logging.CRITICAL)
    theirs(made(symbolic, 20))  # import and caches
    print(f"{'set':<15}{'pairs':>7}{'ours/s':>10}{'loop/s':>10}{'ratio':>8}{'ours right':>12}{'loop right':>12}")
    with VerifierPool(cache=0) as pool:
        pool.warm()
        for kind, share in ((plain_number, 1.0), (mixture, 0.5), (symbolic, 0.1)):
            pairs = made(kind, int(arguments.pairs * share))
            times: dict[str, list[float]] = {"ours": [], "loop": []}
            right: dict[str, int] = {}
            for round_ in range(arguments.rounds):
                # Other numbers every round, so that no side's caches see a pair twice.
                shifted = pairs if not round_ else made(lambda rng, n: kind(rng, n + 10**5 * round_), len(pairs))  # noqa: B023
                for name, judge in (("ours", lambda p: ours(pool, p)), ("loop", theirs)):
                    began = time.perf_counter()
                    said = judge(shifted)
                    times[name].append(time.perf_counter() - began)
                    right[name] = right.get(name, 0) + sum(s == p[2] for s, p in zip(said, shifted, strict=True))
            rate = {name: len(pairs) / statistics.median(seconds) for name, seconds in times.items()}
            total = len(pairs) * arguments.rounds
            print(
                f"{kind.__name__:<15}{len(pairs):>7}{rate['ours']:>10.0f}{rate['loop']:>10.0f}"
                f"{rate['ours'] / rate['loop']:>8.1f}{right['ours'] / total:>12.3f}{right['loop'] / total:>12.3f}"
            )
    repeated = made(symbolic, 50) * 16
    with VerifierPool() as pool:
        pool.warm()
        ours(pool, repeated)
        began = time.perf_counter()
        ours(pool, repeated)
        rate_again = len(repeated) / (time.perf_counter() - began)
        print(f"repeated pairs (symbolic, 50 x 16, seen before): {rate_again:.0f}/s")


if __name__ == "__main__":
    main()
