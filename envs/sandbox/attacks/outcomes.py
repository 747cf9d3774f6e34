"""Attacks on who judges a script: odd names, odd ends, and odd things to hand over. Each must be an outcome of it."""

from __future__ import annotations

import random
from dataclasses import replace

from envs.sandbox.attacks.attack import DEFAULT, Attack, ends, ends_and_says, prints
from envs.sandbox.sandbox import Run, Status

# What a script may do to trip whoever looks at it, in one line each.
CHAOS = """
libc.prctl(15, name(15), 0, 0, 0)
libc.prctl(15, b") R 1 (\\n \\xff", 0, 0, 0)
libc.prctl(4, 0, 0, 0, 0)
open(name(), "wb").write(R.randbytes(R.randrange(5000)))
os.mkdir(name())
os.mkdir(name(), 0)
os.symlink(name(), name())
os.mkfifo(name())
os.truncate(os.open(name(), os.O_CREAT | os.O_WRONLY), R.randrange(1 << 29))
os.chmod(b".", R.choice([0, 0o100, 0o200, 0o400, 0o700]))
os.chmod(b"tmp", 0); os.rename(b"tmp", name())
os.unlink(b"script.py")
os.symlink(b"script.py", b"submission.csv")
os.mkdir(b"submission.csv", R.choice([0, 0o700]))
open(b"submission.csv", "wb").write(R.randbytes(99)); os.chmod(b"submission.csv", R.choice([0, 0o600]))
os.truncate(os.open(b"submission.csv", os.O_CREAT | os.O_WRONLY), 1 << R.randrange(40))
os.write(1, R.randbytes(R.randrange(100_000)))
os.write(1, b"ready")
os.close(1); os.close(2)
os.dup2(os.open("/dev/null", os.O_RDONLY), 1)
os.setsid()
os.fork()
os.fork() or os._exit(0)
os.fork() and libc.syscall(60 if os.uname().machine == "x86_64" else 93, 0)
threading.Thread(target=time.sleep, args=(0.3,)).start()
threading.Thread(target=time.sleep, args=(0.3,)).start(); libc.syscall(60 if os.uname().machine == "x86_64" else 93, 0)
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_NOFILE, (R.randrange(10), 1024))
resource.setrlimit(resource.RLIMIT_CPU, (0, 0))
resource.setrlimit(resource.RLIMIT_STACK, (4096, 4096))
[os.kill(pid, 9) for pid in (-1, 1, os.getppid())]
[open(f"/proc/{pid}/{what}", "wb").write(b"0") for pid in (1, "self") for what in ("mem", "fd/1", "comm")]
open("/proc/self/oom_score_adj", "w").write("0")
[socket.socketpair() for _ in range(100)]
pair = socket.socketpair(); socket.send_fds(pair[0], [b"x"], [os.open(b".", os.O_RDONLY)] * 50)
m = mmap.mmap(-1, 1 << 20); m.write(b"x"); m.madvise(mmap.MADV_DONTNEED)
os.execv("/bin/sh", [b"sh", b"-c", b"exit %d # " % R.randrange(256) + name()])
os.execv(sys.executable, [name(), b"-c", b"import time; time.sleep(0.2)"])
os.unlink(b"data")
os.rmdir(b"tmp"); os.symlink(b"/", b"tmp")
file = open(b"x (deleted)", "w+b"); file.write(b"x"); file.flush(); m = mmap.mmap(file.fileno(), 0)
f = open(b"x\\ny (deleted)", "w+b"); f.write(b"x"); f.flush(); os.unlink(f.name); m = mmap.mmap(f.fileno(), 0)
socket.socket(socket.AF_UNIX).bind(b"a\\n0000000000000000: 00000002 00000000 00010000 0001 01 1 x")
[signal.setitimer(kind, 0.05, 0.05) for kind in (signal.ITIMER_REAL, signal.ITIMER_VIRTUAL, signal.ITIMER_PROF)]
libc.prctl(22, 1, 0, 0, 0)
libc.prctl(36, 1, 0, 0, 0)
libc.prctl(1, 9, 0, 0, 0)
os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
os.nice(19)
os.chdir(b"/"); os.umask(0o777)
""".strip().splitlines()

# How it may end.
ENDS = """
os._exit(R.randrange(256))
os.kill(os.getpid(), R.randrange(1, 65))
os.abort()
sys.exit(name())
raise SystemExit("\\udcff")
raise KeyboardInterrupt
time.sleep(100)
os.kill(os.getpid(), signal.SIGSTOP)
os.close(0); os.close(1); os.close(2); raise ValueError
pass
ctypes.string_at(0)
sys.setrecursionlimit(1 << 30); f = lambda: f(); f()
raise MemoryError
threading.Thread(target=time.sleep, args=(100,)).start()
os.execv("/bin/true", [])
os.execve("/bin/true", ["x" * 100_000] * 10, {"y" * 1000: "z" * 100_000})
os.closerange(0, 1024)
os.killpg(0, 9)
""".strip().splitlines()

_BRIEF = replace(DEFAULT, wall_s=0.7)


def chaos(seed: int) -> Attack:
    """Twelve lines of chaos, and an end."""
    source = random.Random(seed)
    lines = [f"try: {line}\nexcept Exception as error: pass" for line in source.choices(CHAOS, k=12)]
    script = "\n".join([*lines, "time.sleep(0.1)", source.choice(ENDS)])
    limits = replace(DEFAULT, wall_s=2, memory_bytes=1 << 30, disk_bytes=64 << 20, output_bytes=1000)
    return Attack(f"chaos {seed}", script, _chaotic, limits, ("submission.csv", "tmp/x"), seed)


def _chaotic(run: Run) -> bool:
    return len(run.files.get("submission.csv", b"")) <= 1 << 20 and len(run.output) <= 1000


def _exits(code: int) -> Attack:
    status = Status.FAILED if code else Status.OK
    return Attack(f"ends with {code}", f"os._exit({code})", lambda run: (run.status, run.exit_code) == (status, code))


def _killed(number: int) -> Attack:
    return Attack(
        f"ends by signal {number}",
        f"if {number} != 9: signal.signal({number}, signal.SIG_DFL)\nos.kill(os.getpid(), {number})\ntime.sleep(9)",
        lambda run: (run.status, run.exit_code) == (Status.FAILED, 128 + number),
        _BRIEF,
    )


ENDINGS = [
    *(
        Attack(f"does: {line}"[:110], f"{line}\ntime.sleep(0.12)", limits=_BRIEF, files=("submission.csv",))
        for line in CHAOS
    ),
    *(Attack(f"ends: {line}"[:110], f"{line}\ntime.sleep(0.12)", limits=_BRIEF) for line in ENDS),
    *map(_exits, (0, 1, 2, 77, 126, 127, 128, 137, 255)),
    *map(_killed, (1, 2, 3, 4, 6, 7, 8, 9, 11, 13, 14, 15, 24, 25, 31, 34, 64)),
    Attack(
        "leaves a daemon",
        """
        def daemon():
            if os.fork(): return
            os.setsid()
            if os.fork(): os._exit(0)
            while True: time.sleep(0.01); open('beat', 'a').write('x')
        for _ in range(3): daemon()
        while not os.path.exists('beat'): time.sleep(0.01)
        print('alive')
        """,
        prints("alive"),
    ),
    Attack(
        "leaves a daemon that ignores signals and adopts orphans",
        """
        if os.fork() == 0:
            libc.prctl(36, 1, 0, 0, 0); os.setsid()
            for n in set(signal.Signals) - {9, 19}: signal.signal(n, signal.SIG_IGN)
            if os.fork() == 0:
                os.setsid()
                while True: time.sleep(1)
            open('beat', 'w').close()
            while True: time.sleep(1)
        while not os.path.exists('beat'): time.sleep(0.01)
        """,
        ends(Status.OK),
    ),
    Attack(
        "leaves a stopped child",
        """
        pid = os.fork()
        if pid == 0:
            os.kill(os.getpid(), signal.SIGSTOP)
        os.waitpid(pid, os.WUNTRACED)
        """,
        ends(Status.OK),
    ),
    Attack(
        "leaves zombies",
        """
        for _ in range(10):
            if os.fork() == 0: os._exit(0)
        time.sleep(0.2)
        """,
        ends(Status.OK),
    ),
    Attack(
        "says that the sandbox has failed",
        """
        for text in (b'ready', b'readyready', b'OSError: no', (8).to_bytes(8, 'big') + b'{0000000'): os.write(1, text)
        for fd in range(3, 20):
            try: os.write(fd, b'OSError: the sandbox failed')
            except OSError: pass
        """,
        ends(Status.OK),
    ),
    Attack(
        "ends before it begins, as it seems",
        "os.execv('/bin/false', ['false'])",
        lambda run: (run.status, run.exit_code) == (Status.FAILED, 1),
    ),
    Attack("has huge arguments", "os.execv('/bin/true', ['true', *['x' * 1000] * 1500])", ends(Status.OK)),
    Attack("has a directory as its program", "os.execv('.', ['x'])", ends_and_says(Status.FAILED, "PermissionError")),
]


ATTACKS = [*ENDINGS, *map(chaos, range(12))]
