"""The system calls that a script may not make, as a classic BPF program for seccomp.

Namespaces and Landlock decide what a script reaches through the file system, the process table and the network
stack. The filter closes what they leave open: other socket families (vsock reaches the host of a virtual
machine), memory that no process owns (memfd, System V), asynchronous calls behind the filter's back (io_uring),
new namespaces, mounts, tracing, and kernel interfaces with a history of holes. Calls newer than this module do
not exist for the script, nor do those of another architecture (32-bit x86, x32).
"""

from __future__ import annotations

import errno
import os
import struct

# For each architecture: AUDIT_ARCH_* of <linux/audit.h>, and its column in the tables below.
_ARCHITECTURES = {"x86_64": (0xC000003E, 0), "aarch64": (0xC00000B7, 1)}
# This is futex_requeue. From 424 on the numbers are the same on every architecture.
_LAST_KNOWN = 456

_Numbers = tuple[int | None, int | None]


def _table(text: str) -> dict[str, _Numbers]:
    """Reads ``name x86_64 aarch64; ...``: the numbers of system calls, ``-`` where there is no such call."""
    lines = [line for line in text.splitlines() if not line.strip().startswith("#")]
    calls = [call.split() for line in lines for call in line.split(";") if call.strip()]
    return {name: (_number(x86_64), _number(aarch64)) for name, x86_64, aarch64 in calls}


def _number(text: str) -> int | None:
    return None if text == "-" else int(text)


# These calls fail with EPERM.
_DENIED = _table("""
    # They reach other processes, or the kernel itself.
    ptrace 101 117; process_vm_readv 310 270; process_vm_writev 311 271; process_madvise 440 440;
    process_mrelease 448 448; kcmp 312 272; pidfd_getfd 438 438; migrate_pages 256 238; move_pages 279 239;
    perf_event_open 298 241; bpf 321 280; userfaultfd 323 282; add_key 248 217; request_key 249 218; keyctl 250 219;
    syslog 103 116; personality 135 92; modify_ldt 154 -; iopl 172 -; ioperm 173 -; init_module 175 105;
    finit_module 313 273; delete_module 176 106; kexec_load 246 104; kexec_file_load 320 294; reboot 169 142;
    acct 163 89; vhangup 153 58; swapon 167 224; swapoff 168 225; settimeofday 164 170; clock_settime 227 112;
    clock_adjtime 305 266; adjtimex 159 171; sethostname 170 161; setdomainname 171 162; quotactl 179 60;
    quotactl_fd 443 443; lookup_dcookie 212 18; uselib 134 -
    # They make mounts and namespaces, or open files by handle.
    mount 165 40; umount2 166 39; pivot_root 155 41; chroot 161 51; unshare 272 97; setns 308 268; open_tree 428 428;
    move_mount 429 429; fsopen 430 430; fsconfig 431 431; fsmount 432 432; fspick 433 433; mount_setattr 442 442;
    name_to_handle_at 303 264; open_by_handle_at 304 265; fanotify_init 300 262; fanotify_mark 301 263
    # They make memory that outlives its process, and other System V and POSIX objects.
    shmget 29 194; shmat 30 196; shmctl 31 195; shmdt 67 197; msgget 68 186; msgsnd 69 189; msgrcv 70 188;
    msgctl 71 187; semget 64 190; semop 65 193; semtimedop 220 192; semctl 66 191; mq_open 240 180; mq_unlink 241 181
""")
# These calls fail with ENOSYS, as if they did not exist: programs then do without them.
_ABSENT = _table("""
    memfd_create 319 279; memfd_secret 447 447; io_uring_setup 425 425; io_uring_enter 426 426;
    io_uring_register 427 427; clone3 435 435
    # Pages that were given to a pipe belong to no process. A user's instances of inotify are few, and the caller's too.
    # So are the machine's contexts of asynchronous input and output.
    vmsplice 278 75; splice 275 76; tee 276 77; inotify_init 253 -; inotify_init1 294 26; io_setup 206 0
""")
# Extended attributes are kernel memory on some file systems. Space that is taken at once is taken before it is seen.
_UNSUPPORTED = _table("""
    fallocate 285 47;
    setxattr 188 5; lsetxattr 189 6; fsetxattr 190 7; removexattr 197 14; lremovexattr 198 15; fremovexattr 199 16
""")
_CLONE, _SOCKET, _SOCKETPAIR = (56, 220), (41, 198), (53, 199)
_CLOSE_RANGE, _SETSOCKOPT, _IOCTL, _FCNTL = (436, 436), (54, 208), (16, 29), (72, 25)

# Under Landlock the host's processes and files are still there, and these calls could reach them.
_LANDLOCK_DENIED = {"connect": (42, 203), "bind": (49, 200)}
# These calls report success and do nothing, so that shutil.copy works.
_LANDLOCK_WITHOUT_EFFECT = _table("""
    chmod 90 -; fchmod 91 52; fchmodat 268 53; fchmodat2 452 452; chown 92 -; fchown 93 55; lchown 94 -;
    fchownat 260 54; utime 132 -; utimes 235 -; futimesat 261 -; utimensat 280 88
""")
# The first argument of these calls is a process. Only 0, the caller itself, is allowed.
_LANDLOCK_OWN_PROCESS = _table("""
    prlimit64 302 261; sched_setaffinity 203 122; sched_setparam 142 118; sched_setscheduler 144 119;
    sched_setattr 314 274
""")
_SETPRIORITY, _IOPRIO_SET = (141, 140), (251, 30)

# All that a process needs that only computes, with files that are open already.
_COMPUTING = {
    "read": (0, 63),
    "write": (1, 64),
    "close": (3, 57),
    "fstat": (5, 80),
    "lseek": (8, 62),
    "mmap": (9, 222),
    "mprotect": (10, 226),
    "munmap": (11, 215),
    "mremap": (25, 216),
    "madvise": (28, 233),
    "brk": (12, 214),
    "futex": (202, 98),
    "sched_yield": (24, 124),
    "rt_sigreturn": (15, 139),
    "restart_syscall": (219, 128),
    "getpid": (39, 172),
    "gettid": (186, 178),
    "getrandom": (318, 278),
    "clock_gettime": (228, 113),
    "clock_getres": (229, 114),
    "gettimeofday": (96, 169),
    "exit": (60, 93),
    "exit_group": (231, 94),
}

_AF_UNIX = 1
_SOCK_STREAM, _SOCK_SEQPACKET, _SOCK_TYPE = 1, 5, 0xF
# The flags CLONE_NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID and NEWNET.
_NEW_NAMESPACES = 0x7E020000
_CLONE_FILES, _CLONE_THREAD, _CLOSE_RANGE_UNSHARE = 0x400, 0x10000, 2
_SO_SNDBUF, _SO_SNDBUFFORCE, _SO_ATTACH_FILTER, _SO_ATTACH_BPF = 7, 32, 26, 50
_F_SETPIPE_SZ = 1031
_PRIO_PROCESS, _IOPRIO_WHO_PROCESS = 0, 1
_FS_IOC_SETFLAGS, _FS_IOC_FSSETXATTR = 0x40086602, 0x401C5820

# These are from <linux/bpf_common.h> and <linux/seccomp.h>.
_LOAD, _AND, _EQUAL, _GREATER, _RETURN = 0x20, 0x54, 0x15, 0x25, 0x06
_ALLOW, _ERRNO, _KILL = 0x7FFF0000, 0x00050000, 0x80000000
_EPERM, _EACCES, _ENOSYS, _EOPNOTSUPP = (
    _ERRNO | code for code in (errno.EPERM, errno.EACCES, errno.ENOSYS, errno.EOPNOTSUPP)
)

# Each instruction has an operation, a jump if true, a jump if false, and an operand.
_Code = list[tuple[int, int, int, int]]


def program(*, landlock: bool, machine: str | None = None) -> bytes:
    """The filter, as an array of ``struct sock_filter``.

    Args:
        landlock: Whether the script runs under Landlock rather than in namespaces of its own. Then the filter
            also closes what Landlock leaves open: every socket but connected pairs, the limits and priorities
            of other processes, and the metadata of files.
        machine: ``x86_64`` or ``aarch64``; by default this machine's.

    Raises:
        OSError: If the machine is neither of them.
    """
    arch, column = _architecture(machine)

    rules = [(numbers, _deny(_EPERM)) for numbers in _DENIED.values()]
    rules += [(numbers, _deny(_ENOSYS)) for numbers in _ABSENT.values()]
    rules += [(numbers, _deny(_EOPNOTSUPP)) for numbers in _UNSUPPORTED.values()]
    # The guard sees the open files of a process' first thread, so all threads must share them.
    own_files = _require(0, [0, _CLONE_FILES, _CLONE_FILES | _CLONE_THREAD], _EPERM, mask=_CLONE_FILES | _CLONE_THREAD)
    rules.append((_CLONE, _require(0, [0], _EPERM, mask=_NEW_NAMESPACES) + own_files))
    rules.append((_CLOSE_RANGE, _require(2, [0], _EPERM, mask=_CLOSE_RANGE_UNSHARE)))
    # The guard counts the memory of sockets and pipes by the default size of their buffers.
    socket_memory = _refuse(2, [_SO_ATTACH_FILTER, _SO_ATTACH_BPF], _EPERM)
    rules.append((_SETSOCKOPT, socket_memory + _refuse(2, [_SO_SNDBUF, _SO_SNDBUFFORCE], _ERRNO | 0)))
    rules.append((_FCNTL, _refuse(1, [_F_SETPIPE_SZ], _EPERM)))
    rules.append((_IOCTL, _refuse(1, [_FS_IOC_SETFLAGS, _FS_IOC_FSSETXATTR], _EPERM)))
    unix = _require(0, [_AF_UNIX], _EACCES)
    if not landlock:
        rules += [(_SOCKET, unix), (_SOCKETPAIR, unix)]
    else:
        # A datagram pair could be connected anew, or send, to any socket in the file system.
        pair = unix + _require(1, [_SOCK_STREAM, _SOCK_SEQPACKET], _EACCES, mask=_SOCK_TYPE)
        rules += [(_SOCKET, _deny(_EACCES)), (_SOCKETPAIR, pair)]
        rules += [(numbers, _deny(_EACCES)) for numbers in _LANDLOCK_DENIED.values()]
        rules += [(numbers, _deny(_ERRNO | 0)) for numbers in _LANDLOCK_WITHOUT_EFFECT.values()]
        rules += [(numbers, _require(0, [0], _EPERM)) for numbers in _LANDLOCK_OWN_PROCESS.values()]
        for numbers, which in ((_SETPRIORITY, _PRIO_PROCESS), (_IOPRIO_SET, _IOPRIO_WHO_PROCESS)):
            rules.append((numbers, _require(0, [which], _EPERM) + _require(1, [0], _EPERM)))

    code: _Code = [(_LOAD, 0, 0, 4), (_EQUAL, 1, 0, arch), (_RETURN, 0, 0, _KILL)]
    code += [(_LOAD, 0, 0, 0), (_GREATER, 0, 1, _LAST_KNOWN), (_RETURN, 0, 0, _ENOSYS)]
    for numbers, body in rules:
        number = numbers[column]
        if number is not None:
            # A body may replace the loaded call number, so each ends the program.
            body = [*body, (_RETURN, 0, 0, _ALLOW)]
            code += [(_EQUAL, 0, len(body), number), *body]
    code.append((_RETURN, 0, 0, _ALLOW))
    return _assemble(code)


def computing_program(machine: str | None = None) -> bytes:
    """The filter of a process that only computes: every call that is not in ``_COMPUTING`` fails with EPERM.

    Args:
        machine: As for :func:`program`.

    Raises:
        OSError: As there.
    """
    arch, column = _architecture(machine)
    code: _Code = [(_LOAD, 0, 0, 4), (_EQUAL, 1, 0, arch), (_RETURN, 0, 0, _KILL), (_LOAD, 0, 0, 0)]
    for numbers in _COMPUTING.values():
        code += [(_EQUAL, 0, 1, numbers[column]), (_RETURN, 0, 0, _ALLOW)]
    return _assemble([*code, (_RETURN, 0, 0, _EPERM)])


def refused(machine: str | None = None) -> dict[str, tuple[int, int]]:
    """By name, the calls that every script is refused: the number, and the error that it gets."""
    _, column = _architecture(machine)
    found: dict[str, tuple[int, int]] = {}
    for table, code in ((_DENIED, errno.EPERM), (_ABSENT, errno.ENOSYS), (_UNSUPPORTED, errno.EOPNOTSUPP)):
        found |= {name: (number, code) for name, of in table.items() if (number := of[column]) is not None}
    return found


def numbers(machine: str | None = None) -> dict[str, int]:
    """By name, the numbers of the calls that are refused, and of those of which a part is."""
    _, column = _architecture(machine)
    return {
        **{name: number for name, (number, _) in refused(machine).items()},
        "clone": _CLONE[column],
        "close_range": _CLOSE_RANGE[column],
    }


def _architecture(machine: str | None) -> tuple[int, int]:
    machine = machine or os.uname().machine
    if machine not in _ARCHITECTURES:
        raise OSError(errno.ENOSYS, f"the seccomp filter knows {' and '.join(_ARCHITECTURES)}, not {machine}")
    return _ARCHITECTURES[machine]


def _assemble(code: _Code) -> bytes:
    return b"".join(struct.pack("=HBBI", *instruction) for instruction in code)


def _deny(action: int) -> _Code:
    return [(_RETURN, 0, 0, action)]


def _require(argument: int, values: list[int], action: int, mask: int = 0xFFFFFFFF) -> _Code:
    """Goes on if the argument under the mask is one of the values; else returns the action."""
    tests = [(_EQUAL, len(values) - i, 0, value) for i, value in enumerate(values)]
    return [*_load(argument, mask), *tests, (_RETURN, 0, 0, action)]


def _refuse(argument: int, values: list[int], action: int) -> _Code:
    """Goes on if the argument is none of the values; else returns the action."""
    tests = [step for value in values for step in ((_EQUAL, 0, 1, value), (_RETURN, 0, 0, action))]
    return [*_load(argument), *tests]


def _load(argument: int, mask: int = 0xFFFFFFFF) -> _Code:
    """Loads the low half of an argument, which is all that these calls look at."""
    return [(_LOAD, 0, 0, 16 + 8 * argument), (_AND, 0, 0, mask)]
