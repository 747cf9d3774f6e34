"""What a script sees: libraries, an interpreter, its work directory, and an environment of its own."""

from __future__ import annotations

import ast
import functools
import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

# Where bubblewrap shows the work directory.
WORK = "/sandbox"

# These are programs, shared libraries, and what the C library and fonts need, but not all of /usr or /etc.
_SYSTEM = (
    *("/bin", "/lib", "/lib32", "/lib64", "/nix/store", "/etc/alternatives", "/etc/fonts", "/etc/ld.so.cache"),
    *("/etc/localtime", "/etc/mime.types", "/usr/bin", "/usr/lib", "/usr/lib32", "/usr/lib64", "/usr/libexec"),
    *("/usr/share", "/usr/local/lib", "/usr/local/lib64"),
)
# bubblewrap mounts a /proc of the script's own processes; under Landlock these few files must do.
_LANDLOCK_SYSTEM = ("/proc/cpuinfo", "/proc/meminfo", "/proc/stat", "/sys/devices/system/cpu")

# The package `envs` is hidden, with its graders, also where it is installed beside the libraries.
HIDDEN = os.path.realpath(Path(__file__).parents[1])

_DESCRIBE = """
import site, sys, sysconfig
paths = sysconfig.get_paths()
libraries = [paths[name] for name in ("stdlib", "platstdlib", "purelib", "platlib")]
print(([sys.prefix, sys.base_prefix], [*libraries, *site.getsitepackages()]))
"""


@dataclass(frozen=True, slots=True)
class Interpreter:
    """A Python interpreter and the directories it needs.

    Attributes:
        path: Its absolute path, links not resolved: a virtual environment is known by them.
        directories: The directories of its installation and of its packages.
    """

    path: str
    directories: tuple[str, ...]


@functools.cache
def interpreter(python: str) -> Interpreter:
    """Asks an interpreter where it and its packages are installed.

    Raises:
        ValueError: If it does not run.
    """
    path = shutil.which(python)
    if path is None:
        raise ValueError(f"python is {python!r}, which is no program: give the path of a Python interpreter")
    path = os.path.abspath(path)
    answer = ""
    try:
        result = subprocess.run([path, "-I", "-c", _DESCRIBE], capture_output=True, text=True, env={})
        answer = result.stdout + result.stderr
        prefixes, libraries = ast.literal_eval(result.stdout)
    except (OSError, ValueError, SyntaxError, TypeError) as error:
        raise ValueError(f"python is {python!r}, which runs as no Python interpreter: {answer or error}") from error
    # The prefix of the system's interpreter holds more than Python, so only its libraries count.
    prefixes = [prefix for prefix in prefixes if prefix not in ("/", "/usr")]
    return Interpreter(path, tuple(dict.fromkeys([*prefixes, *libraries])))


def readable(python: Interpreter, *, landlock: bool) -> list[str]:
    """The paths that a script may read, with and without links resolved. None of them lies below another."""
    paths = [*_SYSTEM, *(_LANDLOCK_SYSTEM if landlock else ()), *python.directories]
    paths = {path for path in paths if os.path.exists(path)}
    paths |= {os.path.realpath(path) for path in paths}
    kept: list[str] = []
    for path in sorted(paths):
        if not any(path.startswith(f"{parent}/") for parent in kept):
            kept.append(path)
    return kept


def bubblewrap_options(
    paths: list[str], *, hidden: str, work: str, data: str | None, uid: int, read_all: bool
) -> list[str]:
    """The options that tell ``bwrap`` how to build the sandbox, without its seccomp filter.

    Args:
        paths: What the script may read.
        hidden: A directory that is not shown even if it lies below one of the paths.
        work: The work directory.
        data: The directory that the script sees as ``./data``.
        uid: The user that the keeper becomes; -1 if it stays who it is, in a user namespace of its own.
        read_all: Whether the keeper is to have CAP_DAC_READ_SEARCH.
    """
    options = ["--unshare-ipc", "--unshare-pid", "--unshare-net", "--unshare-uts", "--unshare-cgroup-try"]
    options += ["--hostname", "sandbox", "--die-with-parent", "--cap-drop", "ALL"]
    if uid >= 0:
        for capability in ("CAP_SETUID", "CAP_SETGID", *(["CAP_DAC_READ_SEARCH"] if read_all else [])):
            options += ["--cap-add", capability]
    else:
        options.append("--unshare-user")
    made: set[Path] = set()
    for path in paths:
        # Left to itself, bwrap makes parents that only their owner may enter.
        for parent in [*reversed(Path(path).parents)][1:]:
            if parent not in made:
                made.add(parent)
                options += ["--perms", "0755", "--dir", str(parent)]
        if os.path.islink(path) and os.path.isdir(path):
            options += ["--symlink", os.readlink(path), path]
        else:
            options += ["--ro-bind", path, path]
            inside = os.path.relpath(hidden, os.path.realpath(path))
            if not inside.startswith(".."):
                options += ["--tmpfs", os.path.join(path, inside), "--remount-ro", os.path.join(path, inside)]
    options += ["--proc", "/proc", "--dev", "/dev", "--bind", work, WORK]
    # It lies on the disk, where it is counted. A tmpfs would be memory that no process owns.
    options += ["--bind", f"{work}/tmp", "/dev/shm"]
    if data is not None:
        options += ["--ro-bind", data, f"{WORK}/data"]
    # A read-only /proc: a script cannot spare itself when memory runs out (oom_score_adj), or write to a process.
    return [*options, *(o for place in ("/proc", "/dev", "/") for o in ("--remount-ro", place)), "--chdir", WORK]


def environment(python: Interpreter, work: str, threads: int) -> dict[str, str]:
    """The script's environment; nothing of the caller's is in it.

    Args:
        python: The interpreter, whose directory comes first in PATH.
        work: The work directory, as the script sees it.
        threads: The number of CPUs that numerical libraries and process pools assume.
    """
    counts = (
        *("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_MAX_THREADS", "RAYON_NUM_THREADS"),
        *("POLARS_MAX_THREADS", "LOKY_MAX_CPU_COUNT", "PYTHON_CPU_COUNT"),
    )
    return {
        "PATH": f"{os.path.dirname(python.path)}:/usr/bin:/bin",
        "HOME": work,
        "TMPDIR": f"{work}/tmp",
        "USER": "sandbox",
        "LOGNAME": "sandbox",
        "LANG": "C.UTF-8",
        # The same script gives the same result, and what it printed before it was killed is not lost.
        "PYTHONHASHSEED": "0",
        "PYTHONUNBUFFERED": "1",
        "PYTHONDONTWRITEBYTECODE": "1",
        **dict.fromkeys(counts, str(threads)),
    }
