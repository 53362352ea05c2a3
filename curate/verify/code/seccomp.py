"""The filter of system calls for the sandbox: a classic BPF program for `bwrap --seccomp`.

It refuses calls that no judged program needs and that have carried flaws of the kernel, or reach
what the namespaces do not cover: tracing, keyrings, io_uring, bpf, mounts, new namespaces, clocks,
modules, and sockets of every family but AF_UNIX (AF_VSOCK and AF_ALG are not part of a network
namespace). Calls younger than the table do not exist, as on an older kernel. All others are
allowed: a list of allowed calls would depend on the C library and the Python of the machine.

Numbers are those of Linux's `asm/unistd_64.h` and `asm-generic/unistd.h`; the layout of
`struct sock_filter` and `struct seccomp_data` is that of `linux/filter.h` and `linux/seccomp.h`.
"""

from __future__ import annotations

import errno
import platform
import struct
from collections.abc import Iterator

# Name of the machine -> its number in `linux/audit.h`, and its column in the tables below.
MACHINES = {"x86_64": (0xC000003E, 0), "aarch64": (0xC00000B7, 1)}
NEWEST = 450  # set_mempolicy_home_node, Linux 5.17: the last call that was reviewed here

# System call -> its number on x86_64 and on aarch64; None if it does not exist.
REFUSED: dict[str, tuple[int | None, int | None]] = {
    # other processes, and their memory
    "ptrace": (101, 117), "process_vm_readv": (310, 270), "process_vm_writev": (311, 271),
    "kcmp": (312, 272), "pidfd_getfd": (438, 438), "process_madvise": (440, 440),
    # keyrings are shared with the session that started the sandbox
    "add_key": (248, 217), "request_key": (249, 218), "keyctl": (250, 219),
    # large interfaces of the kernel
    "io_uring_setup": (425, 425), "io_uring_enter": (426, 426), "io_uring_register": (427, 427),
    "bpf": (321, 280), "perf_event_open": (298, 241), "userfaultfd": (323, 282),
    "memfd_secret": (447, 447), "fanotify_init": (300, 262), "modify_ldt": (154, None),
    "mbind": (237, 235), "set_mempolicy": (238, 237), "set_mempolicy_home_node": (450, 450),
    "migrate_pages": (256, 238), "move_pages": (279, 239),
    # namespaces and mounts
    "unshare": (272, 97), "setns": (308, 268), "mount": (165, 40), "umount2": (166, 39),
    "pivot_root": (155, 41), "chroot": (161, 51), "open_tree": (428, 428),
    "move_mount": (429, 429), "fsopen": (430, 430), "fsconfig": (431, 431),
    "fsmount": (432, 432), "fspick": (433, 433), "mount_setattr": (442, 442),
    "name_to_handle_at": (303, 264), "open_by_handle_at": (304, 265),
    # the machine itself
    "personality": (135, 92), "syslog": (103, 116), "vhangup": (153, 58), "acct": (163, 89),
    "quotactl": (179, 60), "quotactl_fd": (443, 443), "swapon": (167, 224),
    "swapoff": (168, 225), "reboot": (169, 142), "kexec_load": (246, 104),
    "kexec_file_load": (320, 294), "init_module": (175, 105), "finit_module": (313, 273),
    "delete_module": (176, 106), "sethostname": (170, 161), "setdomainname": (171, 162),
    "settimeofday": (164, 170), "clock_settime": (227, 112), "adjtimex": (159, 171),
    "clock_adjtime": (305, 266), "iopl": (172, None), "ioperm": (173, None),
    "uselib": (134, None), "sysfs": (139, None), "lookup_dcookie": (212, 18),
    "nfsservctl": (180, 42),
}  # fmt: skip
# Calls that are judged by an argument.
CLONE, CLONE3, SOCKET, SOCKETPAIR, IOCTL = (56, 220), (435, 435), (41, 198), (53, 199), (16, 29)
NEW_NAMESPACES = 0x7E020000  # CLONE_NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET
AF_UNIX = 1
TERMINAL_INPUT = (0x5412, 0x541C)  # TIOCSTI and TIOCLINUX type into the terminal

# linux/bpf_common.h
_LOAD, _EQUAL, _GREATER, _ANY_BIT, _RETURN = 0x20, 0x15, 0x25, 0x45, 0x06
# linux/seccomp.h
_ALLOW, _ERRNO, _KILL = 0x7FFF0000, 0x00050000, 0x80000000
# Places in `struct seccomp_data`; of arguments the low half, as both machines are little-endian.
_NUMBER, _MACHINE, _FIRST, _SECOND = 0, 4, 16, 24


def program(machine: str | None = None) -> bytes | None:
    """Return the filter for a machine (this one by default); None for an unknown one."""
    entry = MACHINES.get(machine or platform.machine())
    if entry is None:
        return None
    return b"".join(struct.pack("=HBBI", *step) for step in _steps(*entry))


def _steps(audit: int, column: int) -> Iterator[tuple[int, int, int, int]]:
    """Instructions: code, steps to skip if true, steps to skip if false, value."""
    yield _LOAD, 0, 0, _MACHINE
    yield _EQUAL, 1, 0, audit
    yield _RETURN, 0, 0, _KILL  # 32-bit programs have other numbers
    yield _LOAD, 0, 0, _NUMBER
    yield _GREATER, 0, 1, NEWEST  # also those of the x32 interface
    yield _RETURN, 0, 0, _ERRNO | errno.ENOSYS
    for numbers in REFUSED.values():
        number = numbers[column]
        if number is not None:
            yield _EQUAL, 0, 1, number
            yield _RETURN, 0, 0, _ERRNO | errno.EPERM
    # Its flags are in memory, which a filter cannot read. C libraries then use `clone`.
    yield _EQUAL, 0, 1, CLONE3[column]
    yield _RETURN, 0, 0, _ERRNO | errno.ENOSYS
    yield _EQUAL, 0, 4, CLONE[column]
    yield _LOAD, 0, 0, _FIRST
    yield _ANY_BIT, 0, 1, NEW_NAMESPACES
    yield _RETURN, 0, 0, _ERRNO | errno.EPERM
    yield _RETURN, 0, 0, _ALLOW
    for call in (SOCKET, SOCKETPAIR):
        yield _EQUAL, 0, 4, call[column]
        yield _LOAD, 0, 0, _FIRST
        yield _EQUAL, 1, 0, AF_UNIX
        yield _RETURN, 0, 0, _ERRNO | errno.EAFNOSUPPORT
        yield _RETURN, 0, 0, _ALLOW
    yield _EQUAL, 0, 5, IOCTL[column]
    yield _LOAD, 0, 0, _SECOND
    for request in TERMINAL_INPUT:
        yield _EQUAL, 0, 1, request
        yield _RETURN, 0, 0, _ERRNO | errno.EPERM
    yield _RETURN, 0, 0, _ALLOW
