"""Attacks that use more of the disk, of time, of processes and of output than they may."""

from __future__ import annotations

from dataclasses import replace

from envs.sandbox.attacks.attack import (
    DEFAULT,
    Attack,
    Check,
    by_tier,
    ends,
    ends_and_says,
    grabs,
    hands_over,
    prints,
)
from envs.sandbox.sandbox import Status


def _all(*checks: Check) -> Check:
    return lambda run: all(check(run) for check in checks)


def _within(seconds: float) -> Check:
    return lambda run: run.seconds < seconds


DISK = [
    grabs(f"fills the disk with {name}", script, Status.DISK_FULL, disk_bytes=10 << 20)
    for name, script in {
        "files": "for i in range(40): open(f'{i}', 'wb').write(b'x' * (1 << 20))",
        "temporary files": """
            import tempfile
            for i in range(40): tempfile.NamedTemporaryFile(delete=False).write(b'x' * (1 << 20))
            """,
        "files without a name": """
            import tempfile
            kept = [tempfile.TemporaryFile() for i in range(40)]
            for file in kept: file.write(b'x' * (1 << 20)); file.flush()
            """,
        "files that were never named": """
            kept = [os.open('.', os.O_TMPFILE | os.O_RDWR) for i in range(40)]
            for fd in kept: os.write(fd, b'x' * (1 << 20))
            """,
        "files that are mapped and deleted": """
            kept = []
            for i in range(40):
                with open('f', 'w+b') as file:
                    file.write(b'x' * (1 << 20)); file.flush(); kept.append(mmap.mmap(file.fileno(), 0))
                os.unlink('f')
            """,
        "deleted programs": """
            program = open('/bin/sleep', 'rb').read() + b'x' * (2 << 20)
            for i in range(10):
                fd = os.open('p', os.O_CREAT | os.O_WRONLY, 0o700)
                os.write(fd, program); os.close(fd)
                os.posix_spawn('p', ['p', '30'], {}); os.unlink('p')
            """,
        "empty files": "for i in range(1500): open(f'{i}', 'w')",
        "directories": "for i in range(1500): os.mkdir(f'{i}')",
        "links": "for i in range(1500): os.symlink('x', f'{i}')",
        "hard links": "for i in range(1500): os.link('script.py', f'{i}')",
        "pipes and sockets": "for i in range(1500): os.mkfifo(f'{i}')",
        "a deep directory": "for i in range(1500): os.mkdir('d'); os.chdir('d')",
        "a directory that is closed": """
            os.mkdir('d')
            for i in range(40): open(f'd/{i}', 'wb').write(b'x' * (1 << 20))
            os.chmod('d', 0)
            """,
        "a directory that cannot be read": """
            os.mkdir('d', 0o300)
            for i in range(40): open(f'd/{i}', 'wb').write(b'x' * (1 << 20))
            """,
        "a work directory that is closed": """
            here = os.open('.', os.O_RDONLY)
            for i in range(40): open(f'{i}', 'wb').write(b'x' * (1 << 20))
            os.fchmod(here, 0)
            """,
        "names of 255 odd bytes": "for i in range(1500): open(name()[:250] + b'%d' % i, 'w')",
        "files that another process writes": """
            if os.fork() == 0: os.setsid()
            for i in range(40): open(f'{i}.{os.getpid()}', 'wb').write(b'x' * (1 << 20))
            """,
        "a mapping of a file": """
            file = open('f', 'w+b'); file.truncate(40 << 20); m = mmap.mmap(file.fileno(), 0)
            for i in range(0, 40 << 20, 4096): m[i] = 1
            m.flush()
            """,
    }.items()
]
DISK += [
    Attack(
        "writes a file that is too large",
        """
        with open('large', 'wb') as file:
            for _ in range(10): file.write(b'x' * (1 << 20))
        """,
        _all(ends_and_says(Status.FAILED, "File too large"), hands_over(large=4 << 20)),
        limits=replace(DEFAULT, file_bytes=4 << 20, returned_bytes=8 << 20),
        files=("large",),
    ),
    Attack(
        "takes space that it does not write",
        """
        fd = os.open('f', os.O_CREAT | os.O_RDWR)
        for mode in (0, 1, 2, 0x10, 0x20, 0x40):
            result = libc.fallocate(fd, mode, ctypes.c_long(0), ctypes.c_long(4 << 30))
            print('escaped' if result == 0 else errno.errorcode[ctypes.get_errno()])
        """,
        prints(*["ENOTSUP"] * 6),
        limits=replace(DEFAULT, file_bytes=1 << 30),
    ),
    Attack(
        "makes sparse files",
        """
        for i in range(20): os.truncate(os.open(f'{i}', os.O_CREAT | os.O_WRONLY), 1 << 30)
        time.sleep(0.2)
        """,
        ends(Status.OK),
    ),
    Attack(
        "sends deleted files through a socket",
        """
        one, two = socket.socketpair()
        for i in range(20):
            with open('f', 'wb') as file:
                os.unlink('f'); file.write(b'x' * (1 << 20)); file.flush()
                socket.send_fds(one, [b'x'], [file.fileno()])
        print('sent')
        """,
        ends(Status.OK, Status.DISK_FULL),
        limits=replace(DEFAULT, disk_bytes=10 << 20),
    ),
    Attack(
        "fills /dev/shm",
        """
        x = open('/dev/shm/x', 'wb')
        for _ in range(300): x.write(b'x' * (1 << 20))
        time.sleep(30)
        """,
        by_tier(ends(Status.DISK_FULL), ends_and_says(Status.FAILED, "PermissionError")),
        slow=True,
    ),
]

TIME = [
    grabs(
        "uses CPU time in all of its processes",
        """
        os.fork(); os.fork()
        while True: pass
        """,
        Status.TIMED_OUT,
        cpu_s=0.5,
    ),
    grabs(
        "ignores the end of children that used CPU time",
        """
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)
        while True:
            if os.fork() == 0:
                end = time.process_time() + 0.3
                while time.process_time() < end: pass
                os._exit(0)
            try: os.wait()
            except ChildProcessError: pass
        """,
        Status.TIMED_OUT,
        cpu_s=1.5,
    ),
    grabs(
        "has a name that is no text and uses CPU time",
        r"""
        libc.prctl(15, b'\x80\xff) R 1', 0, 0, 0)
        while True: pass
        """,
        Status.TIMED_OUT,
        cpu_s=0.5,
    ),
    grabs(
        "uses CPU time in threads",
        """
        def spin():
            while True: pass
        for _ in range(4): threading.Thread(target=spin, daemon=True).start()
        spin()
        """,
        Status.TIMED_OUT,
        cpu_s=0.7,
    ),
    grabs(
        "uses CPU time in grandchildren whose parents end",
        """
        while True:
            if os.fork() == 0:
                if os.fork() == 0:
                    end = time.process_time() + 0.2
                    while time.process_time() < end: pass
                os._exit(0)
            os.wait(); time.sleep(0.1)
        """,
        Status.TIMED_OUT,
        cpu_s=1,
    ),
    Attack(
        "ignores every signal",
        """
        for number in set(signal.Signals) - {signal.SIGKILL, signal.SIGSTOP}:
            signal.signal(number, signal.SIG_IGN)
        os.fork(); print('immortal')
        while True: time.sleep(100)
        """,
        _all(ends_and_says(Status.TIMED_OUT, "immortal"), _within(2)),
        limits=replace(DEFAULT, wall_s=0.7),
    ),
    Attack(
        "stops", "os.kill(os.getpid(), signal.SIGSTOP)", ends(Status.TIMED_OUT), limits=replace(DEFAULT, wall_s=0.5)
    ),
    Attack(
        "stops its whole group",
        "os.fork(); os.killpg(0, signal.SIGSTOP)",
        ends(Status.TIMED_OUT),
        limits=replace(DEFAULT, wall_s=0.5),
    ),
    Attack(
        "waits for input",
        "sys.stdin.read(); os.read(0, 1); os.pause() if hasattr(os, 'pause') else signal.pause()",
        ends(Status.TIMED_OUT),
        limits=replace(DEFAULT, wall_s=0.5),
    ),
    Attack(
        "waits for a pipe that nobody opens",
        "os.mkfifo('p'); open('p')",
        ends(Status.TIMED_OUT),
        limits=replace(DEFAULT, wall_s=0.5),
    ),
    Attack(
        "waits in the kernel for its child",
        """
        pid = os.vfork() if hasattr(os, 'vfork') else os.fork()
        os.kill(os.getpid(), signal.SIGSTOP) if pid == 0 else os.waitpid(pid, 0)
        """,
        ends(Status.TIMED_OUT),
        limits=replace(DEFAULT, wall_s=0.5),
    ),
]

PROCESSES = [
    Attack(
        "starts processes without end",
        """
        def bomb():
            while True:
                try: os.fork()
                except OSError: time.sleep(0.01)
        bomb()
        """,
        ends(Status.TIMED_OUT, Status.TOO_MANY_PROCESSES),
        limits=replace(DEFAULT, wall_s=1),
    ),
    Attack(
        "starts daemons without end",
        """
        def bomb():
            while True:
                try:
                    if os.fork() == 0: os.setsid()
                except OSError: time.sleep(0.01)
        bomb()
        """,
        ends(Status.TIMED_OUT, Status.TOO_MANY_PROCESSES),
        limits=replace(DEFAULT, wall_s=1),
    ),
    Attack(
        "starts many processes",
        """
        for count in range(200):
            try: pid = os.fork()
            except OSError: break
            if pid == 0: time.sleep(30)
        print(count); sys.stdout.flush(); time.sleep(0.3)
        """,
        lambda run: run.status is Status.TOO_MANY_PROCESSES or 15 <= int(run.output) <= 22,
    ),
    Attack(
        "starts many threads",
        """
        started = 0
        try:
            for started in range(200): threading.Thread(target=time.sleep, args=(9,), daemon=True).start()
        except RuntimeError: pass
        print(started); sys.stdout.flush(); time.sleep(0.3); os._exit(0)
        """,
        lambda run: run.status is Status.TOO_MANY_PROCESSES or 15 <= int(run.output) <= 22,
    ),
]
OUTPUT = [
    Attack(
        "prints a gigabyte",
        """
        for _ in range(1024): os.write(1, b'x' * (1 << 20))
        print('end')
        """,
        lambda run: run.status is Status.OK and run.output == "x" * 996 + "end\n",
        limits=replace(DEFAULT, output_bytes=1000),
        slow=True,
    ),
    Attack(
        "prints from many processes",
        """
        for _ in range(5): os.fork()
        for _ in range(100): os.write(1, b'x' * 65536)
        """,
        lambda run: run.status in Status and len(run.output) <= 1000,
        limits=replace(DEFAULT, output_bytes=1000, processes=40),
    ),
    Attack(
        "prints after its end",
        """
        if os.fork() == 0:
            os.setsid()
            while True: os.write(1, b'late'); time.sleep(0.01)
        """,
        ends(Status.OK),
    ),
    Attack("prints bytes that are no text", "os.write(1, bytes(range(256)) * 64 + b'\\xf0\\x9f')", ends(Status.OK)),
]

ATTACKS = [*DISK, *TIME, *PROCESSES, *OUTPUT]
