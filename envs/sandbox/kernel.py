"""Linux calls that Python lacks, through ctypes: subreaper, no_new_privs, seccomp, Landlock."""

from __future__ import annotations

import ctypes
import os
import stat

_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER = 22, 2
_PR_SET_CHILD_SUBREAPER, _PR_SET_NO_NEW_PRIVS = 36, 38
# These numbers are the same on every architecture.
_LANDLOCK_CREATE_RULESET, _LANDLOCK_ADD_RULE, _LANDLOCK_RESTRICT_SELF = 444, 445, 446
_LANDLOCK_CREATE_RULESET_VERSION = 1
_LANDLOCK_RULE_PATH_BENEATH = 1
# This ABI, of Linux 6.12, is the first that keeps signals and abstract Unix sockets inside.
LANDLOCK_ABI = 6

# LANDLOCK_ACCESS_FS_*: bit 0 to 15 are execute, write_file, read_file, read_dir, remove_dir, remove_file, make_char,
# make_dir, make_reg, make_sock, make_fifo, make_block, make_sym, refer, truncate, ioctl_dev.
_ALL = (1 << 16) - 1
_MAKE_DEVICES_AND_IOCTL = 1 << 6 | 1 << 11 | 1 << 15
_FILE = 1 << 0 | 1 << 1 | 1 << 2 | 1 << 14
READ = 1 << 0 | 1 << 2 | 1 << 3
LIST = 1 << 3
WRITE = _ALL & ~_MAKE_DEVICES_AND_IOCTL
DEVICE = 1 << 1 | 1 << 2

# LANDLOCK_ACCESS_NET_* are to bind and to connect TCP; LANDLOCK_SCOPE_* are abstract Unix sockets and signals.
_NET, _SCOPED = 3, 3

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long


class _RulesetAttr(ctypes.Structure):
    _fields_ = [
        ("handled_access_fs", ctypes.c_uint64),
        ("handled_access_net", ctypes.c_uint64),
        ("scoped", ctypes.c_uint64),
    ]


class _PathBeneathAttr(ctypes.Structure):
    _fields_ = [("allowed_access", ctypes.c_uint64), ("parent_fd", ctypes.c_int32)]


class _SockFprog(ctypes.Structure):
    _fields_ = [("len", ctypes.c_ushort), ("filter", ctypes.c_char_p)]


def _check(result: int, call: str) -> int:
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{call}: {os.strerror(code)}")
    return result


def _prctl(option: int, *arguments: object) -> None:
    padded = [*arguments, *[ctypes.c_ulong(0)] * (4 - len(arguments))]
    _check(_libc.prctl(option, *padded), f"prctl({option})")


def become_subreaper() -> None:
    """Makes this process the parent of every orphan among its descendants."""
    _prctl(_PR_SET_CHILD_SUBREAPER, ctypes.c_ulong(1))


def forbid_new_privileges() -> None:
    """From now on, programs with a set-uid bit or with capabilities give no further privileges."""
    _prctl(_PR_SET_NO_NEW_PRIVS, ctypes.c_ulong(1))


def apply_seccomp(program: bytes) -> None:
    """Filters the system calls of this thread and of all that it starts."""
    fprog = _SockFprog(len(program) // 8, program)
    _prctl(_PR_SET_SECCOMP, ctypes.c_ulong(_SECCOMP_MODE_FILTER), ctypes.byref(fprog))


def landlock_abi() -> int:
    """The version of Landlock here.

    Raises:
        OSError: If the kernel has none, or it is switched off.
    """
    flags = ctypes.c_uint32(_LANDLOCK_CREATE_RULESET_VERSION)
    return _check(_libc.syscall(_LANDLOCK_CREATE_RULESET, None, ctypes.c_size_t(0), flags), "Landlock")


class LandlockRules:
    """What a process may do to files. Everything that is not named is forbidden, and so is TCP."""

    def __init__(self) -> None:
        attr = _RulesetAttr(_ALL, _NET, _SCOPED)
        size = ctypes.c_size_t(ctypes.sizeof(attr))
        call = _libc.syscall(_LANDLOCK_CREATE_RULESET, ctypes.byref(attr), size, ctypes.c_uint32(0))
        self._fd = _check(call, "landlock_create_ruleset")

    def allow(self, path: str, access: int) -> None:
        """Allows READ, LIST, WRITE or DEVICE on a file, or a directory and all below it."""
        fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
        try:
            if not stat.S_ISDIR(os.fstat(fd).st_mode):
                access &= _FILE
            attr = _PathBeneathAttr(access, fd)
            arguments = (self._fd, ctypes.c_int(_LANDLOCK_RULE_PATH_BENEATH), ctypes.byref(attr), ctypes.c_uint32(0))
            _check(_libc.syscall(_LANDLOCK_ADD_RULE, *arguments), f"landlock_add_rule for {path}")
        finally:
            os.close(fd)

    def allow_reading(self, path: str, hidden: str) -> None:
        """Allows reading a file or a directory, except what lies below ``hidden``, which is a real path."""
        path = os.path.realpath(path)  # a rule is for the place itself, whatever link led to it
        if path == hidden:
            return
        if not hidden.startswith(path.rstrip("/") + "/"):
            self.allow(path, READ)
            return
        # Rules can only allow more. So all other entries of the directory are allowed, instead of the directory itself,
        # and their names may be listed.
        self.allow(path, LIST)
        for name in os.listdir(path):
            entry = os.path.join(path, name)
            if not os.path.islink(entry):  # what a link leads to has a rule of its own, or none
                self.allow_reading(entry, hidden)

    def apply(self) -> None:
        """Restricts this thread and all that it starts."""
        _check(_libc.syscall(_LANDLOCK_RESTRICT_SELF, self._fd, ctypes.c_uint32(0)), "landlock_restrict_self")
        os.close(self._fd)
