"""Checks per second of this verifier and of a loop over `math_verify.parse` + `verify`.

    python tests/benchmarks/bench_verify.py [--pairs 2000] [--rounds 3] [--against CHECKOUT]

All judge the same distinct pairs. Four sets: plain numbers; a mixture of 80 % plain numbers, 15 %
simple LaTeX and 5 % symbolic; all symbolic; and what this verifier itself hands to `math_verify`
(integrals, sums, inequalities that must be solved). Half of the pairs of each set are right. All
see the same completions ("… \\boxed{…}") and the same references.

With `--against` another checkout of this project judges the same pairs in the same rounds, in its
own process. The rival runs twice: as a loop in this process, as its users run it, and as the
same loop in two warm processes that share the pairs, which is the fair comparison on two cores. Our
pool has warm workers, no cache of verdicts, and one worker a core. All judge the same pairs in
turns, and other pairs every round; the medians are compared. Repeated pairs, with the cache on, are
reported apart. Verdicts are compared with the known answer.
"""

from __future__ import annotations

import argparse
import json
import logging
import multiprocessing
import os
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor

from curate.verify import VerifierPool

Pair = tuple[str, str, bool]  # reference, answer, right


def plain_number(rng: random.Random, n: int) -> Pair:
    """Integers, decimals, thousands separators, negative numbers; `n` makes every pair another
    one.
    """
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
    """Polynomials against their factors, quotients, trigonometric and logarithmic identities,
    equations.
    """
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


def handed_on(rng: random.Random, n: int) -> Pair:
    """Pairs that only SymPy can compare."""
    kind, a, b, top = rng.randrange(3), n + 2, rng.randrange(2, 9), n % 50 + 2
    right = rng.random() < 0.5
    off = 0 if right else 1
    if kind == 0:
        return rf"\int_0^{{{a}}} {b}x\,dx", rf"\frac{{{b * a * a + off}}}{{2}}", right
    if kind == 1:
        return rf"\sum_{{k=1}}^{{{top}}} {a}k", str(a * top * (top + 1) // 2 + off), right
    return rf"x^2 < {a * a}", rf"-{a} < x < {a + off}", right


def mixture(rng: random.Random, n: int) -> Pair:
    share = rng.random()
    return (plain_number if share < 0.80 else simple_latex if share < 0.95 else symbolic)(rng, n)


def distinct_pairs(
    kind: Callable[[random.Random, int], Pair], size: int, seed: str = "pairs"
) -> list[Pair]:
    rng = random.Random(seed)
    pairs = {pair[:2]: pair for pair in (kind(rng, n) for n in range(size))}
    return list(pairs.values())


def completion(answer: str) -> str:
    return rf"We work it out step by step. Therefore the result is \boxed{{{answer}}}."


def theirs(pairs: list[Pair]) -> list[bool]:
    from math_verify import parse, verify

    verdicts = []
    for gold, answer, _ in pairs:
        try:
            verdicts.append(bool(verify(parse(f"${gold}$"), parse(completion(answer)))))
        except Exception:
            verdicts.append(False)
    return verdicts


def start_rival() -> None:
    """Set up a process of the rival: no logging, imports and tables loaded."""
    logging.disable(logging.CRITICAL)
    theirs(distinct_pairs(symbolic, 20) + distinct_pairs(handed_on, 6))  # imports and tables


def theirs_shared(executor: ProcessPoolExecutor, pairs: list[Pair]) -> list[bool]:
    """The same loop in two processes: pieces of 25 pairs, so that both end together."""
    pieces = [pairs[i : i + 25] for i in range(0, len(pairs), 25)]
    return [verdict for piece in executor.map(theirs, pieces) for verdict in piece]


def ours(pool: VerifierPool, pairs: list[Pair]) -> list[bool]:
    verdicts = pool.verify_answers(
        [gold for gold, _, _ in pairs], [completion(answer) for _, answer, _ in pairs]
    )
    return [verdict.verdict == "correct" for verdict in verdicts]


# program for another checkout: a line of pairs in, a line of verdicts out
SERVER = """
import json, sys
from curate.verify import VerifierPool
pool = VerifierPool(cache=0)
pool.warm()
for line in sys.stdin:
    golds, texts = json.loads(line)
    verdicts = pool.verify_answers(golds, texts)
    print(json.dumps([v.verdict == "correct" for v in verdicts]), flush=True)
"""


class Checkout:
    """Another checkout of this project, judging in its own process."""

    def __init__(self, folder: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", SERVER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=folder,
            env={**os.environ, "PYTHONPATH": folder},
        )

    def __call__(self, pairs: list[Pair]) -> list[bool]:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        golds = [gold for gold, _, _ in pairs]
        texts = [completion(answer) for _, answer, _ in pairs]
        self.process.stdin.write(json.dumps([golds, texts]) + "\n")
        self.process.stdin.flush()
        return list(json.loads(self.process.stdout.readline()))


def main() -> None:
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--pairs", type=int, default=2000)
    options.add_argument("--rounds", type=int, default=3)
    options.add_argument("--against", help="another checkout of this project, to compare with")
    arguments = options.parse_args()
    start_rival()
    names = ["ours", "loop", "loop x2"] + (["against"] if arguments.against else [])
    print(f"{'set':<15}{'pairs':>7}" + "".join(f"{name + '/s':>11}" for name in names), end="")
    print(f"{'to loop':>9}{'to x2':>8}{'ours right':>12}{'loop right':>12}")
    spawn = multiprocessing.get_context("spawn")
    with (
        VerifierPool(cache=0) as pool,
        ProcessPoolExecutor(2, mp_context=spawn, initializer=start_rival) as executor,
    ):
        pool.warm()
        list(executor.map(theirs, [distinct_pairs(symbolic, 40)] * 4))
        judges: dict[str, Callable[[list[Pair]], list[bool]]] = {
            "ours": lambda pairs: ours(pool, pairs),
            "loop": theirs,
            "loop x2": lambda pairs: theirs_shared(executor, pairs),
        }
        if arguments.against:
            judges["against"] = Checkout(arguments.against)
            judges["against"](distinct_pairs(symbolic, 40) + distinct_pairs(handed_on, 6))
        for kind, share in (
            (plain_number, 1.0),
            (mixture, 0.5),
            (symbolic, 0.1),
            (handed_on, 0.05),
        ):
            size = int(arguments.pairs * share)
            times: dict[str, list[float]] = {name: [] for name in names}
            right = dict.fromkeys(names, 0)
            total = 0
            for round_ in range(arguments.rounds):
                # Other numbers every round, so that no side sees a pair twice.
                def shifted(rng, n, kind=kind, offset=10**5 * round_):  # type: ignore[no-untyped-def]
                    return kind(rng, n + offset)

                pairs = distinct_pairs(shifted, size, f"{kind.__name__} {round_}")
                total += len(pairs)
                for name, judge in judges.items():
                    began = time.perf_counter()
                    verdicts = judge(pairs)
                    times[name].append((time.perf_counter() - began) / len(pairs))
                    right[name] += sum(v == p[2] for v, p in zip(verdicts, pairs, strict=True))
            rate = {name: 1 / statistics.median(seconds) for name, seconds in times.items()}
            print(
                f"{kind.__name__:<15}{size:>7}" + "".join(f"{rate[name]:>11.0f}" for name in names),
                end="",
            )
            print(
                f"{rate['ours'] / rate['loop']:>9.1f}{rate['ours'] / rate['loop x2']:>8.1f}", end=""
            )
            print(f"{right['ours'] / total:>12.3f}{right['loop'] / total:>12.3f}", end="")
            if arguments.against:
                print(f"  {rate['ours'] / rate['against']:.2f} times the other checkout", end="")
            print(flush=True)
    repeated = distinct_pairs(symbolic, 50) * 16
    with VerifierPool() as pool:
        pool.warm()
        ours(pool, repeated)
        began = time.perf_counter()
        ours(pool, repeated)
        rate_again = len(repeated) / (time.perf_counter() - began)
        print(f"repeated pairs (symbolic, 50 x 16, seen before): {rate_again:.0f}/s")


if __name__ == "__main__":
    main()
