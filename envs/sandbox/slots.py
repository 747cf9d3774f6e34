"""How many scripts of a user run on this machine at once."""

from __future__ import annotations

import contextlib
import fcntl
import os
import stat
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

_POLL_S = 0.02


@contextlib.contextmanager
def slot(slots: int) -> Iterator[None]:
    """Waits for one of ``slots`` locks. The kernel frees a lock if its holder dies.

    Raises:
        PermissionError: If the directory of the locks belongs to another user.
    """
    directory = Path(tempfile.gettempdir()) / f"sandbox-slots-{os.getuid()}"
    directory.mkdir(mode=0o700, exist_ok=True)
    info = directory.lstat()
    if not stat.S_ISDIR(info.st_mode) or info.st_uid != os.getuid():
        raise PermissionError(f"{directory} belongs to another user: remove it, or set TMPDIR")
    while True:
        for number in range(slots):
            fd = os.open(directory / str(number), os.O_CREAT | os.O_RDWR | os.O_NOFOLLOW, 0o600)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                try:
                    yield
                finally:
                    fcntl.flock(fd, fcntl.LOCK_UN)  # also for a process forked meanwhile
                return
            except BlockingIOError:
                pass
            finally:
                os.close(fd)
        time.sleep(_POLL_S)
