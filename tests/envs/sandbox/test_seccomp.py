from __future__ import annotations

import errno
import functools
import struct
from collections.abc import Mapping

import pytest

from envs.sandbox import seccomp

ARCHITECTURES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
ALLOW, KILL, ERRNO = 0x7FFF0000, 0x80000000, 0x00050000
ANY = pytest.mark.parametrize("machine", ARCHITECTURES)
TIER = pytest.mark.parametrize("landlock", [False, True])


program = functools.cache(seccomp.program)


computing = functools.cache(seccomp.computing_program)


def verdict(machine: str, landlock: bool | None, number: int, *arguments: int, arch: int | None = None) -> int | str:
    """What a filter, that for computing if ``landlock`` is None, says of a call: ``allow``, ``kill`` or an errno."""
    code = computing(machine=machine) if landlock is None else program(landlock=landlock, machine=machine)
    padded = [*arguments, *[0] * (6 - len(arguments))]
    data = struct.pack("=IIQ6Q", number, ARCHITECTURES[machine] if arch is None else arch, 0, *padded)
    accumulator = at = 0
    while True:
        operation, if_true, if_false, operand = struct.unpack_from("=HBBI", code, 8 * at)
        at += 1
        if operation == 0x20:
            (accumulator,) = struct.unpack_from("=I", data, operand)
        elif operation == 0x54:
            accumulator &= operand
        elif operation == 0x15:
            at += if_true if accumulator == operand else if_false
        elif operation == 0x25:
            at += if_true if accumulator > operand else if_false
        else:
            assert operation == 0x06
            return {ALLOW: "allow", KILL: "kill"}.get(operand, operand - ERRNO)


def number(table: Mapping[str, tuple[int | None, int | None]], name: str, machine: str) -> int:
    found = table[name][machine == "aarch64"]
    assert found is not None
    return found


@ANY
def test_computing_allows_the_listed_calls_alone(machine: str):
    allowed = {number(seccomp._COMPUTING, name, machine) for name in seccomp._COMPUTING}
    for call in range(600):
        assert verdict(machine, None, call) == ("allow" if call in allowed else errno.EPERM)
    assert verdict(machine, None, 1, arch=0x40000003) == "kill"
    assert verdict(machine, None, 1 | 0x40000000) == errno.EPERM  # x32


@ANY
@TIER
def test_every_listed_call_is_refused(machine: str, landlock: bool):
    for table, expected in ((seccomp._DENIED, errno.EPERM), (seccomp._ABSENT, errno.ENOSYS)):
        for numbers in table.values():
            found = numbers[machine == "aarch64"]
            assert found is None or verdict(machine, landlock, found) == expected


@ANY
@TIER
@pytest.mark.parametrize(("x86_64", "aarch64"), [(0, 63), (1, 64), (59, 221), (9, 222), (202, 98), (231, 94)])
def test_ordinary_calls_are_allowed(machine: str, landlock: bool, x86_64: int, aarch64: int):
    """read, write, execve, mmap, futex, exit_group."""
    assert verdict(machine, landlock, {"x86_64": x86_64, "aarch64": aarch64}[machine]) == "allow"


@ANY
@TIER
@pytest.mark.parametrize("call", [457, 500, 0x40000000, 0x40000000 + 41, 0xFFFFFFFF])
def test_unknown_calls_and_those_of_x32_do_not_exist(machine: str, landlock: bool, call: int):
    assert verdict(machine, landlock, call) == errno.ENOSYS


@ANY
@TIER
@pytest.mark.parametrize("arch", [0x40000003, 0x40000028, 0])  # i386, arm
def test_other_architectures_are_killed(machine: str, landlock: bool, arch: int):
    assert verdict(machine, landlock, 0, arch=arch) == "kill"


@ANY
@TIER
def test_clone_makes_threads_and_processes_but_no_namespaces(machine: str, landlock: bool):
    clone = seccomp._CLONE[machine == "aarch64"]
    thread, fork, new_user, new_mount = 0x3D0F00, 0x1200011, 0x10000000, 0x20000
    assert verdict(machine, landlock, clone, thread) == "allow"
    assert verdict(machine, landlock, clone, fork) == "allow"
    assert verdict(machine, landlock, clone, new_user | 17) == errno.EPERM
    assert verdict(machine, landlock, clone, new_mount | 17) == errno.EPERM


@ANY
@pytest.mark.parametrize("family", [2, 10, 16, 17, 38, 40, 44])  # inet, inet6, netlink, packet, alg, vsock, xdp
def test_socket_families(machine: str, family: int):
    socket, pair = (numbers[machine == "aarch64"] for numbers in (seccomp._SOCKET, seccomp._SOCKETPAIR))
    for landlock in (False, True):
        assert verdict(machine, landlock, socket, family, 1) == errno.EACCES
        assert verdict(machine, landlock, pair, family, 1) == errno.EACCES
        # The kernel looks at the low half alone.
        assert verdict(machine, landlock, socket, family | 1 << 40, 1) == errno.EACCES


@ANY
def test_unix_sockets(machine: str):
    socket, pair = (numbers[machine == "aarch64"] for numbers in (seccomp._SOCKET, seccomp._SOCKETPAIR))
    stream, datagram, seqpacket, cloexec = 1, 2, 5, 0x80000
    assert verdict(machine, False, socket, 1, stream) == "allow"
    assert verdict(machine, True, socket, 1, stream) == errno.EACCES
    for kind in (stream, stream | cloexec, seqpacket):
        assert verdict(machine, True, pair, 1, kind) == "allow"
    assert verdict(machine, False, pair, 1, datagram) == "allow"
    assert verdict(machine, True, pair, 1, datagram) == errno.EACCES
    assert verdict(machine, True, pair, 1, datagram | cloexec) == errno.EACCES


@ANY
def test_under_landlock_other_processes_are_out_of_reach(machine: str):
    for name in seccomp._LANDLOCK_OWN_PROCESS:
        call = number(seccomp._LANDLOCK_OWN_PROCESS, name, machine)
        assert verdict(machine, True, call, 0) == "allow"
        assert verdict(machine, True, call, 4242) == errno.EPERM
        assert verdict(machine, False, call, 4242) == "allow"
    setpriority, ioprio_set, ioctl = (
        numbers[machine == "aarch64"] for numbers in (seccomp._SETPRIORITY, seccomp._IOPRIO_SET, seccomp._IOCTL)
    )
    for call, which in ((setpriority, 0), (ioprio_set, 1)):
        assert verdict(machine, True, call, which, 0) == "allow"
        assert verdict(machine, True, call, which, 4242) == errno.EPERM
        assert verdict(machine, True, call, which + 2, 0) == errno.EPERM
    assert verdict(machine, True, ioctl, 3, 0x5401) == "allow"
    assert verdict(machine, True, ioctl, 3, 0x40086602) == errno.EPERM


@ANY
def test_under_landlock_metadata_stays(machine: str):
    for name in ("fchmod", "fchownat", "utimensat"):
        call = number(seccomp._LANDLOCK_WITHOUT_EFFECT, name, machine)
        assert verdict(machine, True, call) == 0
        assert verdict(machine, False, call) == "allow"


@ANY
@TIER
def test_buffers_keep_their_size(machine: str, landlock: bool):
    setsockopt, fcntl = (numbers[machine == "aarch64"] for numbers in (seccomp._SETSOCKOPT, seccomp._FCNTL))
    for option, expected in ((7, 0), (32, 0), (26, errno.EPERM), (50, errno.EPERM), (8, "allow")):
        assert verdict(machine, landlock, setsockopt, 3, 1, option) == expected
    assert verdict(machine, landlock, fcntl, 3, 1031, 1 << 20) == errno.EPERM
    assert verdict(machine, landlock, fcntl, 3, 3) == "allow"
    assert verdict(machine, landlock, {"x86_64": 285, "aarch64": 47}[machine], 3, 1) == errno.EOPNOTSUPP


@ANY
def test_what_is_refused_is_named(machine: str):
    named = seccomp.refused(machine)
    assert named["io_setup"][1] == named["splice"][1] == errno.ENOSYS and named["ptrace"][1] == errno.EPERM
    for call, code in named.values():
        assert verdict(machine, False, call) == code
    assert seccomp.numbers(machine).keys() == {*named, "clone", "close_range"}


def test_another_machine_is_refused():
    with pytest.raises(OSError, match="riscv64"):
        seccomp.program(landlock=False, machine="riscv64")
