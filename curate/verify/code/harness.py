"""The two scripts that run inside sandboxes: `SERVE` answers calls to a program, `ASSERT` runs the
tests that make the calls.

They exchange JSON over pipes; nothing is ever unpickled. A value that JSON cannot hold stays with
the program, and the tests get a handle to it: they can call it, ask for its attributes and its
items, but never let it decide an equality with their own value.
"""

from __future__ import annotations

from typing import Any

# Values cross the pipe as JSON, with tags for the Python types that JSON lacks.
CODEC = """
import datetime, decimal, fractions, itertools
HANDLES = []

def encode(v, handles=False):
    if v is None or type(v) in (bool, str): return v
    if isinstance(v, bool): return bool(v)
    if type(v) is int: return v if abs(v) < 2**53 else {"i": hex(v)}
    if type(v) is float: return {"f": repr(v)}
    if type(v) is complex: return {"c": [repr(v.real), repr(v.imag)]}
    if type(v) in (bytes, bytearray): return {"b": bytes(v).hex()}
    if type(v) is list: return [encode(x, handles) for x in v]
    if type(v) is tuple: return {"t": [encode(x, handles) for x in v]}
    if type(v) in (set, frozenset): return {"s": [encode(x, handles) for x in v]}
    if isinstance(v, dict) and type(v).__module__ in ("builtins", "collections"):
        return {"d": [[encode(k, handles), encode(x, handles)] for k, x in v.items()]}
    if type(v) is fractions.Fraction: return {"q": [str(v.numerator), str(v.denominator)]}
    if type(v) is decimal.Decimal: return {"D": str(v)}
    if type(v) in (datetime.date, datetime.datetime, datetime.time):
        return {"T": [type(v).__name__, v.isoformat()]}
    if type(v).__module__ == "collections" and type(v).__name__ == "deque":
        return [encode(x, handles) for x in v]
    if type(v).__module__.partition(".")[0] == "numpy" and hasattr(v, "tolist"):
        return encode(v.tolist(), handles)
    if isinstance(v, (int, float, str, list, tuple, set)) and type(v).__eq__ in (
        int.__eq__, float.__eq__, str.__eq__, list.__eq__, tuple.__eq__, set.__eq__
    ):
        for base in (bool, int, float, str, list, tuple, set):
            if isinstance(v, base): return encode(base(v), handles)
    if hasattr(v, "__next__") and not handles:
        return [encode(x) for x in itertools.islice(v, 100000)]
    if handles:
        HANDLES.append(v)
        mro = [c.__name__ for c in type(v).__mro__]
        return {"r": [len(HANDLES) - 1, mro, isinstance(v, type) and v.__name__ or ""]}
    raise TypeError("a value of type " + type(v).__name__ + " cannot cross the sandbox")

def decode(v, remote=None):
    if isinstance(v, list): return [decode(x, remote) for x in v]
    if not isinstance(v, dict): return v
    (k, x), = v.items()
    if k == "i": return int(x, 16)
    if k == "f": return float(x)
    if k == "c": return complex(float(x[0]), float(x[1]))
    if k == "b": return bytes.fromhex(x)
    if k == "t": return tuple(decode(y, remote) for y in x)
    if k == "s": return set(decode(y, remote) for y in x)
    if k == "d": return {decode(a, remote): decode(b, remote) for a, b in x}
    if k == "q": return fractions.Fraction(int(x[0]), int(x[1]))
    if k == "D": return decimal.Decimal(x)
    if k == "T": return getattr(datetime, x[0]).fromisoformat(x[1])
    if k == "h": return HANDLES[x]
    if k == "r" and remote is not None: return remote(*x)
    raise TypeError(k)
"""
_codec: dict[str, Any] = {}
exec(CODEC, _codec)
encode, decode = _codec["encode"], _codec["decode"]

# Names that graders of competition sites provide without an import.
PRELUDE = """
import bisect, collections, copy, functools, heapq, itertools, math, operator, random, re
import string, sys
from bisect import bisect_left, bisect_right, insort
from collections import Counter, OrderedDict, defaultdict, deque
from functools import cache, cmp_to_key, lru_cache, reduce
from heapq import heapify, heappop, heappush
from itertools import accumulate, combinations, permutations, product
from math import ceil, comb, floor, gcd, inf, log2, sqrt
from typing import *
"""

# In the program's sandbox: load it, then answer calls. Its own prints go nowhere.
SERVE = (
    CODEC
    + """
import io, json, os, sys
calls, results = os.fdopen(os.dup(0), "r"), os.fdopen(os.dup(1), "w")
null = os.open(os.devnull, os.O_RDWR)
os.dup2(null, 0); os.dup2(null, 1)
sys.path.insert(0, "/tmp")
space = {"__name__": "solution"}
exec(open("/tmp/prelude.py").read(), space)
names = set(space)
source = open("/tmp/solution.py").read()
sys.setrecursionlimit(50000)
exec(compile(source, "solution.py", "exec"), space)
def target(name):
    if name in space and (name not in names or name == "Solution"): return space[name]
    if "Solution" in space:
        if name: return getattr(space["Solution"](), name)
        own = [n for n in vars(space["Solution"]) if not n.startswith("_")]
        if len(own) == 1: return getattr(space["Solution"](), own[0])
    if name in space: return space[name]
    raise NameError(name)
for line in calls:
    kind, name, args, kwargs, handles = json.loads(line)
    try:
        args, kwargs = decode(args), decode(kwargs)
        if kind == "call": value = target(name)(*args, **kwargs)
        elif kind == "name": value = target(name)
        elif kind == "get": value = getattr(args[0], name)
        elif kind == "set": value = setattr(args[0], name, args[1])
        elif kind == "method": value = getattr(args[0], name)(*args[1:], **kwargs)
        elif kind == "apply": value = args[0](*args[1:], **kwargs)
        else: raise ValueError(kind)
        # Lists and dictionaries that were changed in place go back with the result.
        reply = ["value", encode(value, handles), encode(args, True) if handles else None]
    except BaseException as error:
        reply = ["error", [c.__name__ for c in type(error).__mro__], str(error)[:200]]
    results.write(json.dumps(reply) + "\\n")
    results.flush()
"""
)

# In the tests' sandbox: names under test are calls over the pipe. Prints the secret word if all
# assertions held.
ASSERT = (
    CODEC
    + """
import builtins, json, os, sys, types
data = json.load(open("/tmp/tests.json"))
replies, calls = os.fdopen(os.dup(0), "r"), os.fdopen(os.dup(1), "w")
null = os.open(os.devnull, os.O_RDWR)
os.dup2(null, 0); os.dup2(null, 1)
n_calls = 0

class Undecidable(BaseException):
    pass

def ship(v):
    if isinstance(v, Remote): return {"h": object.__getattribute__(v, "_number")}
    if type(v) is list: return [ship(x) for x in v]
    if type(v) is tuple: return {"t": [ship(x) for x in v]}
    if type(v) is dict: return {"d": [[ship(k), ship(x)] for k, x in v.items()]}
    try: return encode(v)
    except TypeError as error: raise Undecidable(str(error))

def ask(kind, name, args, kwargs):
    global n_calls
    n_calls += 1
    named = {"d": [[k, ship(v)] for k, v in kwargs.items()]}
    calls.write(json.dumps([kind, name, [ship(a) for a in args], named, True]) + "\\n")
    calls.flush()
    line = replies.readline()
    if not line: raise SystemExit("the program ended early")
    kind, value, rest = json.loads(line)
    if kind == "value":
        for before, after in zip(args, decode(rest, Remote)): refresh(before, after)
        return decode(value, Remote)
    for name in value:
        exception = getattr(builtins, name, None)
        if isinstance(exception, type) and issubclass(exception, Exception): raise exception(rest)
    raise RuntimeError(value[0])

def refresh(before, after):
    if type(before) is list and type(after) is list and before != after: before[:] = after
    elif type(before) is dict and type(after) is dict: before.clear(); before.update(after)
    elif type(before) is set and type(after) is set: before.clear(); before.update(after)

class Remote:
    def __init__(self, number, mro, name=""):
        for key, value in (("_number", number), ("_mro", mro), ("_name", name)):
            object.__setattr__(self, key, value)
    def __getattr__(self, name):
        if name.startswith("__"): raise AttributeError(name)
        return ask("get", name, [self], {})
    def __setattr__(self, name, value): ask("set", name, [self, value], {})
    def __call__(self, *args, **kwargs): return ask("apply", "", [self, *args], kwargs)
    def __eq__(self, other):
        if isinstance(other, Remote):
            if hash(self) == hash(other): return True
            raise Undecidable("two objects of the program are compared by the program itself")
        return False
    def __ne__(self, other): return not self == other
    def __hash__(self): return hash(object.__getattribute__(self, "_number"))
    def __instancecheck__(self, other):
        name = object.__getattribute__(self, "_name")
        if not isinstance(other, Remote): return False
        return bool(name) and name in object.__getattribute__(other, "_mro")

SPECIAL = (
    "len iter next getitem setitem delitem contains str repr bool add sub mul truediv floordiv mod "
    "neg abs int float enter exit radd rmul index"
)
for special in SPECIAL.split():
    def method(self, *args, _name="__" + special + "__"):
        return ask("method", _name, [self, *args], {})
    setattr(Remote, "__" + special + "__", method)
for special in "lt le gt ge".split():
    def ordered(self, other):
        raise Undecidable("objects of the program are ordered by the program itself")
    setattr(Remote, "__" + special + "__", ordered)

def remote(name):
    def call(*args, **kwargs): return ask("call", name, args, kwargs)
    return call

space = {"__name__": "tests"}
exec(open("/tmp/prelude.py").read(), space)
space.update(Fraction=fractions.Fraction, Decimal=decimal.Decimal, date=datetime.date)
if data["preamble"]:
    try: exec(compile(data["preamble"], "preamble.py", "exec"), space)
    except SyntaxError: pass
class Lazy(types.ModuleType):
    def __getattr__(self, name):
        if name.startswith("__"): raise AttributeError(name)
        return remote(name)
sys.modules["solution"] = Lazy("solution")
def finish(word):
    sys.stderr.write(word); sys.stderr.flush(); os._exit(0)
try:
    for name in data["functions"]: space[name] = remote(name)
    for name in data["classes"]: space[name] = ask("name", name, [], {})
    exec(compile(data["code"], "tests.py", "exec"), space)
    if data["function"] and "check" in space and n_calls == 0:
        space["check"](space[data["function"]])
    for name, test in list(space.items()):
        if name.startswith("test_") and isinstance(test, types.FunctionType): test()
except Undecidable as error:
    finish("undecided " + data["word"] + " " + str(error))
finish(("passed " if n_calls else "untested ") + data["word"])
"""
)
