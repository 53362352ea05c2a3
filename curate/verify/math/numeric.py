"""Values of trees to forty digits, and whether two expressions agree.

Two expressions are equal when they agree at random points (Schwartz and Zippel): a wrong one agrees
at none of them to 25 digits. Sizes are bounded before anything is computed: a tower of powers
raises `TooLarge` at once.
"""

from __future__ import annotations

import threading
import zlib
from collections.abc import Callable, Mapping
from fractions import Fraction
from functools import lru_cache
from typing import Any

from curate.verify.math.exact import (
    MAX_FACTORIAL,
    MAX_LOG10,
    NoValue,
    TooLarge,
    Uncomputable,
    Undefined,
    exact,
    symbols,
)
from curate.verify.math.identity import is_identity
from curate.verify.math.numbers import Number
from curate.verify.math.parser import Node

DIGITS = 40
ONE = Number(Fraction(1))
AGREE = 1e-25  # relative


_local = threading.local()


def context() -> Any:
    """Return this thread's mpmath context: its precision is state that threads must not share."""
    if not hasattr(_local, "mp"):
        import mpmath

        _local.mp = mpmath.MPContext()
        _local.mp.dps = DIGITS
    return _local.mp


def number(node: Node, point: Mapping[str, Any], log10: bool = False) -> Any:
    """Return the value (mpf or mpc) at a point. `log10` reads a bare log to base ten."""
    mp = context()
    kind = node[0]
    if kind == "num":
        written = node[1]
        value = written.value / 100 if written.percent else written.value
        result = mp.mpf(value.numerator)
        if value.denominator != 1:
            result = result / value.denominator
        return result * (mp.pi / 180) if written.unit == "°" else result
    if kind == "sym":
        if node[1] not in point:
            raise Undefined("a symbol without a value")
        return point[node[1]]
    if kind == "const":
        if node[1] == "inf":
            raise Undefined("infinity")
        return {"pi": +mp.pi, "e": +mp.e, "i": mp.mpc(0, 1)}[node[1]]
    if kind == "neg":
        return -number(node[1], point, log10)
    if kind in ("add", "sub", "mul", "div"):
        a, b = number(node[1], point, log10), number(node[2], point, log10)
        if kind == "div":
            if b == 0:
                raise NoValue("division by zero")
            return a / b
        return a + b if kind == "add" else a - b if kind == "sub" else a * b
    if kind == "pow":
        base, exponent = number(node[1], point, log10), number(node[2], point, log10)
        if node[2][0] == "num" and node[2][1].value.denominator == 1:
            return _power(base, exponent)
        power = exact(node[2]) if not symbols(node[2]) else None
        odd = power is not None and power.denominator % 2 and power.denominator > 1
        if power is not None and odd and mp.im(base) == 0 and mp.re(base) < 0:
            # The real root, as in school books, rather than the principal one.
            return _power(_root(base, mp.mpf(power.denominator)), mp.mpf(power.numerator))
        return _power(base, exponent)
    if kind == "call" and node[1].startswith("f:"):
        return _opaque(node[1], [number(part, point, log10) for part in node[2:]])
    if kind == "call":
        return _call(node[1], [number(part, point, log10) for part in node[2:]], log10)
    if kind in ("sum", "prod", "integral"):
        return _over_range(node, point, log10)
    raise Undefined(f"no value of a {kind}")


def _over_range(node: Node, point: Mapping[str, Any], log10: bool) -> Any:
    """Return the value of a sum, a product or an integral with few terms; raises `Undefined` if
    SymPy has to do it.
    """
    mp = context()
    kind, name, low, high, body = node
    if not symbols(node):
        value = exact(node)
        if value is not None:
            return mp.mpf(value.numerator) / value.denominator
    first, last = (_whole(bound, point, log10) for bound in (low, high))
    if kind == "integral" or first is None or last is None:
        raise Uncomputable(f"a {kind} to be carried out")
    if last - first > 200:
        raise Uncomputable(f"a {kind} to be carried out")
    total = mp.mpf(0 if kind == "sum" else 1)
    for k in range(first, last + 1):
        term = number(body, {**point, name: mp.mpf(k)}, log10)
        total = total + term if kind == "sum" else total * term
    return total


def _whole(bound: Node, point: Mapping[str, Any], log10: bool) -> int | None:
    """Return the bound of a sum at a point if it is a whole number."""
    try:
        value = number(bound, point, log10)
    except Undefined:  # infinity
        return None
    return int(value) if context().im(value) == 0 and value == int(value) else None


def _opaque(name: str, values: list[Any]) -> Any:
    """Return the value of an unknown function: equal for equal arguments, and for no others."""
    mp = context()
    key = name + "".join(mp.nstr(value, 15) for value in values)
    return mp.mpf("0.3") + mp.mpf(zlib.crc32(key.encode())) / 0xFFFFFFFF


def logarithm(node: Node) -> Any:
    """Return the natural logarithm of a positive product, quotient, power or factorial; None for
    anything else.
    """
    mp = context()
    kind = node[0]
    if kind == "pow":
        base, exponent = logarithm(node[1]), exact(node[2]) if not symbols(node[2]) else None
        return (
            None
            if base is None or exponent is None
            else base * exponent.numerator / exponent.denominator
        )
    if kind in ("mul", "div"):
        first, second = logarithm(node[1]), logarithm(node[2])
        if first is None or second is None:
            return None
        return first + second if kind == "mul" else first - second
    if kind == "call" and node[1] == "factorial":
        value = exact(node[2])
        return (
            mp.loggamma(value.numerator + 1)
            if value is not None and value.denominator == 1
            else None
        )
    value = exact(node) if kind == "num" else None
    return (
        mp.log(value.numerator) - mp.log(value.denominator)
        if value is not None and value > 0
        else None
    )


def _power(a: Any, b: Any) -> Any:
    mp = context()
    if a == 0:
        if mp.re(b) <= 0:
            raise NoValue("zero to no positive power")
        return mp.mpf(0)
    # The binary magnitude bounds the logarithm from above, and costs nothing.
    if (abs(mp.mag(a)) + 1) * abs(b) > MAX_LOG10:
        size = abs(mp.log10(abs(a))) * abs(b) if abs(a) != 1 else abs(b)
        if size > MAX_LOG10:
            raise TooLarge("a power too large to compute")
    return _bounded(mp.power(a, b))


def _bounded(value: Any) -> Any:
    magnitude = abs(value)
    if magnitude and not -4 * MAX_LOG10 < context().mag(magnitude) < 4 * MAX_LOG10:
        raise TooLarge("a number too large to compute")
    return value


def _call(name: str, values: list[Any], log10: bool) -> Any:
    mp = context()
    x = values[0]
    if name in ("exp", "sinh", "cosh", "tanh") and abs(x) > MAX_LOG10:
        raise TooLarge("an exponential too large to compute")
    if name in ("ln", "log", "lg", "logb") and x == 0:
        raise NoValue("the logarithm of zero")
    if name == "factorial":
        if abs(x) > MAX_FACTORIAL:
            raise TooLarge("a factorial too large to compute")
        return mp.factorial(x)
    if name == "root":
        return _root(x, values[1])
    simple = _SIMPLE.get(name)
    if simple is not None and len(values) == 1:
        return simple(mp, x)
    if name == "log":
        return mp.log10(x) if log10 else mp.log(x)
    if name == "logb" and len(values) == 2:
        return mp.log(x) / mp.log(values[1])
    if (
        name == "binom"
        and len(values) == 2
        and abs(x) <= MAX_FACTORIAL
        and abs(values[1]) <= MAX_FACTORIAL
    ):
        return mp.binomial(x, values[1])
    if (
        name == "perm"
        and len(values) == 2
        and abs(x) <= MAX_FACTORIAL
        and abs(values[1]) <= MAX_FACTORIAL
    ):
        return mp.ff(x, values[1])
    if name in ("max", "min") and all(mp.im(value) == 0 for value in values):
        return max(values) if name == "max" else min(values)
    raise Undefined(f"no value of {name}")


_SIMPLE: dict[str, Callable[[Any, Any], Any]] = {
    "sin": lambda mp, x: mp.sin(x),
    "cos": lambda mp, x: mp.cos(x),
    "tan": lambda mp, x: mp.tan(x),
    "cot": lambda mp, x: mp.cot(x),
    "sec": lambda mp, x: mp.sec(x),
    "csc": lambda mp, x: mp.csc(x),
    "arcsin": lambda mp, x: mp.asin(x),
    "arccos": lambda mp, x: mp.acos(x),
    "arctan": lambda mp, x: mp.atan(x),
    "sinh": lambda mp, x: mp.sinh(x),
    "cosh": lambda mp, x: mp.cosh(x),
    "tanh": lambda mp, x: mp.tanh(x),
    "ln": lambda mp, x: mp.log(x),
    "lg": lambda mp, x: mp.log10(x),
    "exp": lambda mp, x: mp.exp(x),
    "sqrt": lambda mp, x: mp.sqrt(x),
    "abs": lambda mp, x: abs(x),
    "deg": lambda mp, x: x * mp.pi / 180,
    "floor": lambda mp, x: mp.floor(x),
    "ceil": lambda mp, x: mp.ceil(x),
    "re": lambda mp, x: mp.re(x),
    "im": lambda mp, x: mp.im(x),
}


def _root(x: Any, degree: Any) -> Any:
    """Return the real root if there is one."""
    mp = context()
    if degree == 0:
        raise Undefined("a root of degree zero")
    odd = mp.im(degree) == 0 and degree == int(degree) and int(degree) % 2
    if mp.im(x) == 0 and mp.re(x) < 0 and odd:
        return -mp.power(-mp.re(x), 1 / degree)
    return _power(x, 1 / degree)


# Symbols that are whole numbers next to pi in a sine or as an exponent of -1.
_COUNTS = frozenset("n k m j l".split())
_WHOLE_POINTS = (1, 2, 3, 4, 7, 10)
# Signs and magnitudes of the points: all positive, larger, mixed, negative. The values come from
# the symbols' names.
_RANGES = ((0.3, 1.7), (1.2, 3.9), (0.1, 0.9), (-1.9, 1.9), (-2.7, -0.2), (-0.9, 0.9))


def points(names: set[str], whole: set[str] | frozenset[str] = frozenset()) -> list[dict[str, Any]]:
    """Return values for the symbols: the same in every process, different for every symbol; `whole`
    are integers.
    """
    mp = context()
    return [
        {
            name: mp.mpf(_WHOLE_POINTS[(index + place) % len(_WHOLE_POINTS)])
            if name in whole
            else mp.make_mpf(_coordinate(name, index))
            for place, name in enumerate(sorted(names))
        }
        for index in range(len(_RANGES))
    ]


@lru_cache(maxsize=8192)
def _coordinate(name: str, index: int) -> Any:
    """Return the value of a symbol at a point, in the form that every context can share."""
    mp = context()
    low, high = _RANGES[index]
    with mp.workdps(DIGITS):
        share = mp.mpf(zlib.crc32(f"{name}/{index}".encode())) / 0xFFFFFFFF
        return (low + (high - low) * (share * 0.97 + mp.sqrt(2) / 100))._mpf_


def whole_symbols(node: Node) -> set[str]:
    """Return the symbols that stand for whole numbers: n in (-1)^n, in sin(n pi), in a
    factorial.
    """
    whole: set[str] = set()
    if node[0] in ("sum", "prod"):
        whole |= symbols(node[2]) | symbols(node[3])
    if node[0] == "pow" and node[1] in (("neg", ("num", ONE)), ("const", "i")):
        whole |= symbols(node[2]) & _COUNTS
    if node[0] == "call" and node[1] in ("sin", "cos", "tan") and _has_pi(node):
        whole |= symbols(node) & _COUNTS
    for part in node[1:]:
        if isinstance(part, tuple) and part:
            for one in part if isinstance(part[0], tuple) else (part,):
                whole |= whole_symbols(one)
    return whole


def _has_pi(node: Node) -> bool:
    return node == ("const", "pi") or any(
        isinstance(part, tuple) and part and _has_pi(part) for part in node[1:]
    )


def agree(a: Any, b: Any) -> bool:
    """Whether two values agree to the digits that are computed."""
    if a == b:
        return True
    size = max(abs(a), abs(b))
    difference = abs(a - b)
    if a == 0 or b == 0:
        return bool(difference < 1e-30)
    return bool(difference <= size * AGREE)


def equal_at_points(a: Node, b: Node, relation: Callable[[Any, Any], bool] = agree) -> bool:
    """Whether two expressions agree at all points where both are real (or at all points, if they
    are never real).
    """
    if relation is agree:
        identical = is_identity(a, b)
        if identical is not None:
            return identical
    names = symbols(a) | symbols(b)
    if _equal_at_points(a, b, names, relation, False):
        return relation is not agree or not _may_cancel(a, b) or _stays_equal(a, b, names, False)
    bare_log = "'log'" in repr(a) or "'log'" in repr(b)
    if not (bare_log and _equal_at_points(a, b, names, relation, True)):
        return False
    return relation is not agree or not _may_cancel(a, b) or _stays_equal(a, b, names, True)


# Functions of moderate arguments that are nearly constant, or very large.
_EXTREME = frozenset("exp sinh cosh tanh factorial binom perm".split())
_LARGE = Fraction(10**9)


def _may_cancel(a: Node, b: Node) -> bool:
    """Whether two trees have parts so small or so large that 25 digits may hide a difference."""
    return _is_extreme(a) or _is_extreme(b)


def _is_extreme(node: Node) -> bool:
    kind = node[0]
    if kind == "num":
        size = abs(node[1].value)
        return bool(size) and not 1 / _LARGE < size < _LARGE
    if kind == "call" and node[1] in _EXTREME:
        return True
    if kind == "pow" and not symbols(node[1]) | symbols(node[2]):
        # A small power is as moderate as its base; any other constant exponent may not be.
        exponent = node[2][1] if node[2][0] == "neg" else node[2]
        if exponent[0] not in ("num", "div") or (
            exponent[0] == "num" and abs(exponent[1].value) > 20
        ):
            return True
    return any(
        _is_extreme(one)
        for part in node[1:]
        if isinstance(part, tuple) and part
        for one in (part if isinstance(part[0], tuple) else (part,))
    )


# Digits of the second and third look, and how much smaller rounding noise must have become in
# between. Ours.
MORE_DIGITS = (150, 400)
NOISE = "1e-100"


def _stays_equal(a: Node, b: Node, names: set[str], log10: bool) -> bool:
    """Whether the difference vanishes as the precision grows.

    A difference that is only rounding noise shrinks with every digit; 1 and 1 - e^{-100} agree to
    43 digits and differ beyond.
    """
    mp = context()
    looks = 0
    for point in points(names, whole_symbols(a) | whole_symbols(b)) if names else [{}]:
        gaps, sizes = [], []
        for digits in MORE_DIGITS:
            with mp.workdps(digits):
                try:
                    first, second = number(a, point, log10), number(b, point, log10)
                except (Undefined, ZeroDivisionError, OverflowError):
                    break
                gaps.append(abs(first - second))
                sizes.append(max(abs(first), abs(second)))
        if len(gaps) < 2:
            continue
        looks += 1
        with mp.workdps(DIGITS):
            if gaps[0] > sizes[0] * mp.mpf("1e-120") and gaps[1] > gaps[0] * mp.mpf(NOISE):
                return False
            if gaps[1] > sizes[1] * mp.mpf("1e-370") and gaps[1] > gaps[0] * mp.mpf(NOISE):
                return False
        if looks == 2 or not names:
            break
    return True


def _equal_at_points(
    a: Node, b: Node, names: set[str], relation: Callable[[Any, Any], bool], log10: bool
) -> bool:
    mp = context()
    real, complex_ = 0, []
    for point in points(names, whole_symbols(a) | whole_symbols(b)) if names else [{}]:
        try:
            first, second = number(a, point, log10), number(b, point, log10)
        except Uncomputable:
            raise
        except (Undefined, ZeroDivisionError, OverflowError):
            continue
        if _is_real(mp, first) and _is_real(mp, second):
            if not relation(mp.re(first), mp.re(second)):
                return False
            real += 1
        else:
            complex_.append((first, second))
    if real >= (3 if names else 1):
        return True
    return len(complex_) >= (3 if names else 1) and all(
        relation(first, second) for first, second in complex_
    )


def _is_real(mp: Any, value: Any) -> bool:
    if isinstance(value, mp.mpf):
        return bool(value == value)
    return bool(abs(mp.im(value)) <= abs(value) * 1e-30)
