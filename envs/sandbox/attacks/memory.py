"""Attacks that use more memory than they may, out of sight of who adds up what processes show."""

from __future__ import annotations

import textwrap
from dataclasses import replace

from envs.sandbox.attacks.attack import DEFAULT, STAY, Attack, by_tier, ends, ends_and_says, grabs, prints
from envs.sandbox.sandbox import Run, Status


def _grabs_by_sockets(name: str, script: str) -> Attack:
    """An attack that keeps what it has taken by sockets with names, which Landlock refuses."""
    refused = ends_and_says(Status.FAILED, "PermissionError")
    holds = by_tier(ends(Status.OUT_OF_MEMORY), refused)
    return Attack(name, textwrap.dedent(script) + STAY, holds, limits=replace(DEFAULT, wall_s=60), slow=True)


def _no_memory(run: Run) -> bool:
    return run.status is Status.FAILED and run.output.splitlines()[-1] == "MemoryError"


MEMORY = [
    Attack("asks for more memory than there is", "x = bytearray(600 << 20)", _no_memory),
    Attack(
        "asks for it in pieces",
        """
        kept = []
        while True: kept.append(bytearray(1 << 20))
        """,
        lambda run: _no_memory(run) or run.status is Status.OUT_OF_MEMORY,
    ),
    grabs(
        "fills the memory of many processes",
        """
        for _ in range(8):
            if os.fork() == 0: break
        x = bytearray(b'x' * (40 << 20))
        """,
        Status.OUT_OF_MEMORY,
    ),
    grabs(
        "shares memory",
        """
        x = mmap.mmap(-1, 300 << 20)
        for _ in range(300): x.write(b'x' * (1 << 20))
        """,
        Status.OUT_OF_MEMORY,
    ),
    grabs(
        "shares memory in pieces",
        """
        kept = []
        for _ in range(10):
            m = mmap.mmap(-1, 40 << 20)
            for _ in range(40): m.write(b'x' * (1 << 20))
            kept.append(m)
        """,
        Status.OUT_OF_MEMORY,
    ),
    grabs(
        "shares memory and drops its pages",
        """
        kept = []
        for _ in range(10):
            m = mmap.mmap(-1, 40 << 20)
            for _ in range(40): m.write(b'x' * (1 << 20))
            m.madvise(mmap.MADV_DONTNEED); kept.append(m)
        """,
        Status.OUT_OF_MEMORY,
    ),
    # Kernels with CONFIG_ANON_VMA_NAME show the name in place of what it is.
    grabs(
        "shares memory under a name of its own",
        """
        kept = []
        for _ in range(10):
            m = mmap.mmap(-1, 40 << 20)
            for _ in range(40): m.write(b'x' * (1 << 20))
            at = ctypes.addressof(ctypes.c_char.from_buffer(m))
            libc.prctl(0x53564D41, 0, ctypes.c_ulong(at), ctypes.c_ulong(40 << 20), b'heap')
            libc.madvise(ctypes.c_void_p(at), ctypes.c_size_t(40 << 20), 4); kept.append(m)
        """,
        Status.OUT_OF_MEMORY,
    ),
    grabs(
        "fills the buffers of sockets",
        """
        os.fork(); os.fork(); os.fork()
        kept = []
        for _ in range(400):
            one, two = socket.socketpair()
            one.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 30)
            one.setblocking(False); kept += [one, two]
            try:
                while True: one.send(b'x' * 100_000)
            except OSError: pass
        """,
        Status.OUT_OF_MEMORY,
    ),
    Attack(
        "makes the buffer of a socket larger",
        """
        one, two = socket.socketpair()
        one.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 30); one.setblocking(False)
        sent = 0
        try:
            while True: sent += one.send(b'x' * 1000)
        except BlockingIOError: print(sent)
        """,
        lambda run: 0 < int(run.output) < 320_000,
    ),
    _grabs_by_sockets(
        "leaves what it has sent with connections that nobody accepts",
        """
        for i in range(8):
            server = socket.socket(socket.AF_UNIX); server.bind(f's{i}'); server.listen(4096)
            globals()[f'kept{i}'] = server
            for _ in range(4000):
                client = socket.socket(socket.AF_UNIX); client.setblocking(False); client.connect(f's{i}')
                try:
                    while True: client.send(b'x' * 30_000)
                except BlockingIOError: client.close()
        """,
    ),
    _grabs_by_sockets(
        "leaves messages with sockets that do not read",
        """
        kept = []
        for i in range(400):
            server = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM); server.bind(f's{i}'); kept.append(server)
            for _ in range(11):
                client = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
                client.setblocking(False); client.sendto(b'x' * 200_000, f's{i}'); client.close()
        """,
    ),
    grabs(
        "fills pipes",
        """
        os.fork(); os.fork(); os.fork()
        kept = []
        for _ in range(450):
            one, two = os.pipe()
            os.set_blocking(two, False)
            try:
                while True: os.write(two, b'x' * 65536)
            except OSError: pass
        """,
        Status.OUT_OF_MEMORY,
    ),
    Attack(
        "makes pipes larger",
        """
        import fcntl
        one, two = os.pipe()
        attempt(fcntl.fcntl, two, 1031, 1 << 20)
        """,
        prints("PermissionError"),
    ),
    Attack(
        "hides memory from who counts it",
        r"""
        call('vmsplice', 1, 0, 0, 0)
        call('memfd_create', b'x', 0)
        call('memfd_secret', 0)
        call('splice', 0, 0, 1, 0, 1, 0)
        call('tee', 0, 1, 1, 0)
        call('shmget', 1, 4096, 0o1666)
        one, two = socket.socketpair()
        attempt(one.setsockopt, 1, 26, b'\0' * 16)  # a filter is memory too
        """,
        prints("ENOSYS", "ENOSYS", "ENOSYS", "ENOSYS", "ENOSYS", "EPERM", "PermissionError"),
    ),
    Attack(
        "has open files of its own in a thread",
        """
        call('close_range', 1000, 1001, 2)
        print(libc.syscall(OUT['calls']['close_range'], 1000, 1001, 0))
        call('clone', 0x10000 | 0x100 | 0x800, 0, 0, 0, 0)
        """,
        prints("EPERM", "0", "EPERM"),
    ),
    grabs(
        "ends its first thread",
        """
        for _ in range(5):
            if os.fork() == 0: break
        def fill():
            time.sleep(0.2)
            x = bytearray(b'x' * (80 << 20)); time.sleep(30)
        threading.Thread(target=fill).start()
        libc.syscall(60 if os.uname().machine == 'x86_64' else 93, 0)
        """,
        Status.OUT_OF_MEMORY,
    ),
    grabs(
        "makes the kernel keep tables of pages",
        """
        size = 1 << 40
        at = libc.mmap(None, size, 1, 0x4022, -1, 0)
        for offset in range(0, size, 2 << 20): ctypes.string_at(at + offset, 1)
        """,
        Status.OUT_OF_MEMORY,
    ),
    Attack(
        "shares its memory with its children, which counts once",
        """
        x = bytearray(b'x' * (60 << 20))
        for _ in range(5):
            if os.fork() == 0: break
        time.sleep(0.5)
        """,
        ends(Status.OK),
    ),
    grabs(
        "lets its pages be swapped out",
        """
        kept = []
        for _ in range(8):
            if os.fork() == 0: break
        m = mmap.mmap(-1, 50 << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        m.write(b'x' * (50 << 20))
        m.madvise(21)
        """,
        Status.OUT_OF_MEMORY,
    ),
    # Who looks at each of them is busy for many seconds, and does not see what is done meanwhile.
    grabs(
        "keeps who watches it busy with mappings",
        """
        for _ in range(15):
            if os.fork() == 0: break
        file = open(f'{os.getpid()}', 'w+b'); file.write(b'x' * 8192); file.flush(); os.unlink(file.name)
        for _ in range(60_000): libc.mmap(None, 4096, 1, 1, file.fileno(), 0)
        x = bytearray(b'x' * (40 << 20))
        """,
        Status.OUT_OF_MEMORY,
    ),
    Attack(
        "keeps who watches it busy until its time is over",
        """
        for _ in range(15):
            if os.fork() == 0: break
        file = open(f'{os.getpid()}', 'w+b'); file.write(b'x' * 8192); file.flush(); os.unlink(file.name)
        for _ in range(60_000): libc.mmap(None, 4096, 1, 1, file.fileno(), 0)
        time.sleep(30)
        """,
        ends(Status.TIMED_OUT, Status.OUT_OF_MEMORY),
        limits=replace(DEFAULT, wall_s=6, memory_bytes=1 << 30),
        slow=True,
    ),
    Attack(
        "is not dumpable",
        """
        for _ in range(8):
            if os.fork() == 0: break
        libc.prctl(4, 0, 0, 0, 0)
        x = bytearray(b'x' * (40 << 20))
        time.sleep(30)
        """,
        ends(Status.OUT_OF_MEMORY),
        slow=True,
    ),
]

ATTACKS = MEMORY
