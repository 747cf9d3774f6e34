"""The last stage before the script: gives up what is left of privilege and becomes the script.

In the bubblewrap tier it runs inside the sandbox, as ``python -c`` with this file's text, because only there its
user namespace, or its uid, counts the processes of this run alone. It therefore imports nothing of the project,
and ctypes, which takes long, only where it is needed.
"""

from __future__ import annotations

import os
import resource
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

READY = b"ready"

_PR_SET_KEEPCAPS, _PR_CAP_AMBIENT, _PR_CAP_AMBIENT_RAISE = 8, 47, 2
_CAPABILITY_VERSION_3 = 0x20080522
CAP_DAC_READ_SEARCH = 2


def give_up_privileges(uid: int, read_all: bool) -> None:
    """Leaves root, and every capability but one, for good.

    Args:
        uid: The user and group to become; -1 to stay.
        read_all: Whether CAP_DAC_READ_SEARCH is kept: what the sandbox shows can then be read though it is root's.
    """
    if os.geteuid() != 0:
        return
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    mask = 1 << CAP_DAC_READ_SEARCH if read_all else 0
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0)
    sets = (ctypes.c_uint32 * 6)(mask, mask, mask, 0, 0, 0)  # effective, permitted, inheritable; low, then high
    failed = libc.prctl(_PR_SET_KEEPCAPS, 1, 0, 0, 0)
    if uid >= 0:
        os.setgroups([])
        os.setresgid(uid, uid, uid)
        os.setresuid(uid, uid, uid)
    failed = failed or libc.capset(header, sets)
    if read_all:
        failed = failed or libc.prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_RAISE, CAP_DAC_READ_SEARCH, 0, 0)
    if failed:
        raise OSError(ctypes.get_errno(), "could not give up the capabilities")


def run(argv: list[str], environment: Mapping[str, str], processes: int, ready: int) -> None:
    """Bounds the processes of this user in this user namespace, reports that the sandbox is ready, and becomes argv."""
    hard = resource.getrlimit(resource.RLIMIT_NPROC)[1]
    processes = processes if hard == resource.RLIM_INFINITY else min(processes, hard)
    resource.setrlimit(resource.RLIMIT_NPROC, (processes, processes))
    os.set_inheritable(ready, False)
    os.write(ready, READY)
    os.execve(argv[0], argv, environment)


def main() -> None:
    """Reads from the command line: the descriptor for READY, uid, read_all, processes, and the command to become."""
    ready, uid, read_all, processes = map(int, sys.argv[1:5])
    give_up_privileges(uid, bool(read_all))
    run(sys.argv[5:], os.environ, processes, ready)


if __name__ == "__main__":
    main()
