"""The sandbox's filter of system calls: what it refuses, on both machines and in a real sandbox."""

from __future__ import annotations

import errno
import json
import platform
import struct

import pytest

from curate.errors import CurateError
from curate.verify.code import sandbox, seccomp
from curate.verify.code.sandbox import Limits, run

try:
    sandbox.tools()
    REASON = "" if seccomp.program() else "no filter for this machine"
except CurateError as error:
    REASON = str(error)
ALLOW = 0x7FFF0000


def decide(program: bytes, audit: int, number: int, *arguments: int) -> int:
    """Interpret a filter, as the kernel does."""
    words = [number, audit, 0, 0]
    for argument in arguments:
        words += [argument & 0xFFFFFFFF, argument >> 32]
    data = struct.pack("=16I", *words, *[0] * (16 - len(words)))
    steps, place, value = list(struct.iter_unpack("=HBBI", program)), 0, 0
    while True:
        code, if_true, if_false, operand = steps[place]
        place += 1
        if code == 0x06:
            return operand
        if code == 0x20:
            value = struct.unpack_from("=I", data, operand)[0]
            continue
        holds = {0x15: value == operand, 0x25: value > operand, 0x45: bool(value & operand)}[code]
        place += if_true if holds else if_false


def refused(code: int) -> int:
    return 0x00050000 | code


@pytest.mark.parametrize("machine", seccomp.MACHINES)
def test_each_call_is_decided_as_the_tables_say(machine: str) -> None:
    program = seccomp.program(machine)
    assert program is not None
    audit, column = seccomp.MACHINES[machine]
    judged = {call[column] for call in (seccomp.CLONE, seccomp.CLONE3, seccomp.IOCTL)}
    judged |= {seccomp.SOCKET[column], seccomp.SOCKETPAIR[column]}
    denied = {numbers[column] for numbers in seccomp.REFUSED.values()}
    assert not judged & denied
    for number in range(seccomp.NEWEST + 1):
        if number not in judged:
            expected = refused(errno.EPERM) if number in denied else ALLOW
            assert decide(program, audit, number) == expected, number
    for number in (seccomp.NEWEST + 1, 0x40000000 | 1, 0xFFFFFFFF):
        assert decide(program, audit, number) == refused(errno.ENOSYS)
    assert decide(program, 0x40000003, 1) == 0x80000000  # i386
    assert decide(program, audit, seccomp.CLONE3[column]) == refused(errno.ENOSYS)
    clone, socket, ioctl = (c[column] for c in (seccomp.CLONE, seccomp.SOCKET, seccomp.IOCTL))
    assert decide(program, audit, clone, 0x01200011) == ALLOW  # fork()
    assert decide(program, audit, clone, 0x003D0F00) == ALLOW  # pthread_create()
    for flag in (0x20000, *(1 << bit for bit in range(25, 31))):
        assert decide(program, audit, clone, 0x11 | flag) == refused(errno.EPERM)
    for family in range(46):
        expected = ALLOW if family == 1 else refused(errno.EAFNOSUPPORT)
        assert decide(program, audit, socket, family) == expected
        assert decide(program, audit, seccomp.SOCKETPAIR[column], family) == expected
    assert decide(program, audit, ioctl, 0, 0x5401) == ALLOW  # isatty()
    assert decide(program, audit, ioctl, 0, 0x5412) == refused(errno.EPERM)


def test_a_machine_without_tables_has_no_filter() -> None:
    assert seccomp.program("riscv64") is None


PROBE = """
import ctypes, errno, json, os, socket, subprocess, sys, threading
libc = ctypes.CDLL(None, use_errno=True)
calls = json.load(open(0))
result = {}
for name, number in calls.items():
    ctypes.set_errno(0)
    result[name] = [libc.syscall(number, 0, 0, 0, 0, 0, 0), errno.errorcode.get(ctypes.get_errno())]
for family in (2, 10, 16, 17, 38, 40):  # INET, INET6, NETLINK, PACKET, ALG, VSOCK
    try: socket.socket(family, 1); result[f"family {family}"] = "open"
    except OSError as error: result[f"family {family}"] = errno.errorcode[error.errno]
thread = threading.Thread(target=lambda: result.update(thread="ran"))
thread.start(); thread.join()
child = subprocess.run([sys.executable, "-c", "print(7)"], capture_output=True)
result["child"] = child.stdout.decode()
one, other = socket.socketpair()
one.sendall(b"x"); result["pair"] = other.recv(1).decode()
result["status"] = [l for l in open("/proc/self/status") if l.startswith("Seccomp:")][0].split()[1]
print(json.dumps(result))
"""


@pytest.mark.skipif(bool(REASON), reason=REASON or "there is a filter")
def test_in_a_sandbox_the_calls_are_refused_and_programs_still_run() -> None:
    column = seccomp.MACHINES[platform.machine()][1]
    numbers = {name: n[column] for name, n in seccomp.REFUSED.items() if n[column] is not None}
    outcome = run(PROBE, json.dumps(numbers), limits=Limits(seconds=10.0))
    assert not outcome.failure, outcome
    result = json.loads(outcome.stdout or b"{}")
    assert {name: result[name] for name in numbers} == {name: [-1, "EPERM"] for name in numbers}
    families = [value for name, value in result.items() if name.startswith("family")]
    assert families == ["EAFNOSUPPORT"] * 6
    assert (result["thread"], result["child"], result["pair"]) == ("ran", "7\n", "x")
    assert result["status"] == "2"  # filtered
