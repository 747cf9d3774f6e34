"""Attacks that reach for what is outside: networks, processes and the kernel."""

from __future__ import annotations

from envs.sandbox.attacks.attack import Attack, ends, ends_and_says, prints, refused
from envs.sandbox.sandbox import Run, Status

_EITHER = Status.OK, Status.FAILED


def _every_call(run: Run) -> bool:
    lines = [line.split() for line in run.output.splitlines()]
    return run.status is Status.OK and len(lines) > 60 and all(got == expected for _, got, expected in lines)


NETWORK = [
    Attack(
        "connects to this machine",
        """
        attempt(reach, socket.AF_INET, socket.SOCK_STREAM, ('127.0.0.1', OUT['tcp']))
        attempt(reach, socket.AF_INET, socket.SOCK_DGRAM, ('127.0.0.1', OUT['udp']))
        attempt(reach, socket.AF_INET6, socket.SOCK_STREAM, ('::1', OUT['tcp']))
        """,
        refused(3),
    ),
    Attack(
        "connects to a socket in the file system",
        """
        attempt(reach, socket.AF_UNIX, socket.SOCK_STREAM, OUT['unix'])
        attempt(reach, socket.AF_UNIX, socket.SOCK_DGRAM, OUT['datagram'])
        attempt(reach, socket.AF_UNIX, socket.SOCK_DGRAM, OUT['datagram'], pair=True)
        """,
        refused(3),
    ),
    Attack(
        "sends to a socket in the file system",
        """
        one = lambda: socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)[0]
        attempt(lambda: one().sendto(b'x', OUT['datagram']))
        attempt(lambda: one().sendmsg([b'x'], [], 0, OUT['datagram']))
        """,
        refused(2),
    ),
    Attack(
        "connects to an abstract socket",
        r"""
        attempt(reach, socket.AF_UNIX, socket.SOCK_STREAM, '\0' + OUT['abstract'])
        attempt(reach, socket.AF_UNIX, socket.SOCK_SEQPACKET, '\0' + OUT['abstract'])
        """,
        refused(2, "ConnectionRefusedError"),
    ),
    Attack(
        "opens sockets of every family",
        """
        for family in range(2, 46):
            for kind in (1, 2, 3, 5): attempt(socket.socket, family, kind)
        """,
        refused(176),
    ),
    Attack(
        "looks up a name",
        """
        attempt(socket.getaddrinfo, 'example.org', 80)
        attempt(socket.gethostbyname, 'localhost.example')
        """,
        refused(2, "gaierror"),
    ),
    Attack(
        "asks services of the system",
        """
        for path in ('/run/systemd/private', '/run/dbus/system_bus_socket', '/var/run/docker.sock',
                '/run/systemd/resolve/io.systemd.Resolve', '/tmp/.X11-unix/X0', '/run/user/0/bus'):
            attempt(reach, socket.AF_UNIX, socket.SOCK_STREAM, path)
        """,
        refused(6),
    ),
    Attack(
        "asks for signals to others from its sockets",
        """
        import fcntl
        one, two = socket.socketpair()
        for pid in (OUT['victim'], OUT['caller'], os.getppid()):
            try:
                fcntl.fcntl(one, fcntl.F_SETOWN, pid)
                fcntl.fcntl(one, 10, signal.SIGTERM)  # F_SETSIG
                fcntl.fcntl(one, fcntl.F_SETFL, fcntl.fcntl(one, fcntl.F_GETFL) | os.O_ASYNC)
                two.send(b'x'); two.send(b'x')
            except OSError: pass
        time.sleep(0.1); print('end')
        """,
        prints("end"),
    ),
]

PROCESSES = [
    Attack(
        "signals and changes other processes",
        """
        for pid in (OUT['victim'], OUT['caller'], os.getppid() if os.getppid() > 1 else OUT['caller']):
            attempt(os.kill, pid, 0); attempt(os.kill, pid, signal.SIGTERM); attempt(os.kill, pid, signal.SIGSTOP)
            attempt(resource.prlimit, pid, resource.RLIMIT_NOFILE, (1, 1))
            attempt(os.setpriority, os.PRIO_PROCESS, pid, 19); attempt(os.sched_setaffinity, pid, {0})
            attempt(os.sched_setscheduler, pid, os.SCHED_IDLE, os.sched_param(0))
            attempt(open, f'/proc/{pid}/mem', 'r+b'); attempt(os.setpgid, pid, 0)
        """,
        refused(27, "ProcessLookupError"),
    ),
    Attack(
        "signals everybody",
        """
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        for pid in (-1, 0):
            try: os.kill(pid, signal.SIGTERM)
            except OSError: pass
        """,
        ends(Status.OK, Status.FAILED),
    ),
    Attack(
        "signals through descriptors of processes",
        """
        def send(pid):
            fd = os.pidfd_open(pid)
            signal.pidfd_send_signal(fd, signal.SIGTERM)
        for pid in (OUT['victim'], OUT['caller']): attempt(send, pid)
        """,
        refused(2, "ProcessLookupError"),
    ),
    Attack(
        "traces other processes",
        """
        for pid in (OUT['victim'], OUT['caller'], os.getppid(), 1):
            call('ptrace', 16, pid, 0, 0); call('ptrace', 0x4206, pid, 0, 0)
            call('process_vm_readv', pid, 0, 0, 0, 0, 0)
            call('process_vm_writev', pid, 0, 0, 0, 0, 0)
            call('kcmp', os.getpid(), pid, 0, 0, 0)
        """,
        refused(20, "EPERM"),
    ),
    Attack(
        "takes descriptors out of another process",
        """
        try: fd = os.pidfd_open(OUT['victim'])
        except OSError: fd = 99
        call('pidfd_getfd', fd, 1, 0)
        """,
        refused(1, "EPERM"),
    ),
    Attack(
        "becomes root, or another user",
        """
        for change in (os.setuid, os.setgid, lambda root: os.setgroups([root]),
                lambda root: os.setresuid(root, root, root), lambda root: os.setreuid(root, root),
                lambda root: os.setresgid(root, root, root)):
            attempt(change, 0)
            attempt(change, 1)
        print(os.getuid() == 0)
        """,
        lambda run: (
            run.status is Status.OK
            and run.output.split()[-1] == "False"
            and set(run.output.split()[:-1]) <= {"PermissionError", "OSError"}
        ),
    ),
    Attack(
        "starts programs that give privileges",
        r"""
        import subprocess
        for program in ('su', 'sudo', 'mount', 'passwd', 'newuidmap', 'pkexec', 'chsh', 'ping'):
            try: done = subprocess.run([program, '-c', 'id -u'], capture_output=True,
                    stdin=subprocess.DEVNULL, timeout=5)
            except OSError: continue
            if done.stdout.strip() == b'0': print('escaped')
        try: status = open('/proc/self/status').read()
        except OSError: status = 'NoNewPrivs:\t1'
        print('NoNewPrivs:\t1' in status)
        """,
        prints("True"),
    ),
    Attack(
        "takes capabilities",
        """
        header = (ctypes.c_uint32 * 2)(0x20080522, 0)
        sets = (ctypes.c_uint32 * 6)(*[0xFFFFFFFF] * 6)
        print('escaped' if libc.capset(header, sets) == 0 else 'refused')
        print('escaped' if libc.prctl(47, 2, 21, 0, 0) == 0 else 'refused')  # raises an ambient CAP_SYS_ADMIN
        """,
        prints("refused", "refused"),
    ),
    Attack(
        "takes real-time priority",
        """
        for policy in (os.SCHED_FIFO, os.SCHED_RR): attempt(os.sched_setscheduler, 0, policy, os.sched_param(1))
        attempt(os.nice, -5)
        """,
        refused(3),
    ),
    Attack(
        "limits the first process of its own sandbox",
        """
        for what in (resource.RLIMIT_NOFILE, resource.RLIMIT_FSIZE, resource.RLIMIT_CPU):
            try: resource.prlimit(1, what, (0, 0))
            except OSError: pass
        end = time.time() + 1.5
        while time.time() < end: pass
        """,
        ends(*_EITHER),
    ),
    Attack(
        "debugs the first process of its own sandbox",
        """
        for file in ('mem', 'environ', 'fd/0', 'fd/1', 'fd/2', 'fd/3', 'fd/4', 'fd/5'):
            try: open(f'/proc/1/{file}', 'r+b', buffering=0).write(b'x')
            except OSError: pass
        print('end')
        """,
        ends_and_says(Status.OK, "end"),
    ),
]

KERNEL = [
    Attack(
        "makes every system call that is refused",
        """
        for name, (number, code) in OUT['refused'].items():
            result = libc.syscall(number, *[ctypes.c_long(0)] * 6)
            print(name, 'escaped' if result != -1 else errno.errorcode.get(ctypes.get_errno()), errno.errorcode[code])
        """,
        _every_call,
    ),
    Attack(
        "makes system calls that are newer than the filter",
        """
        for number in (*range(457, 480), 512, 600, 1 << 30, (1 << 30) + 41, -1):
            result = libc.syscall(ctypes.c_long(number), *[ctypes.c_long(0)] * 6)
            print('escaped' if result != -1 else errno.errorcode[ctypes.get_errno()])
        """,
        refused(28, "ENOSYS"),
    ),
    Attack(
        "makes namespaces",
        """
        for flags in (0x10000000, 0x20000, 0x40000000, 0x20000000, 0x8000000, 0x4000000, 0x2000000, 0x80):
            print('escaped' if libc.unshare(flags) == 0 else 'refused')
        number = 56 if os.uname().machine == 'x86_64' else 220
        for flags in (0x10000000, 0x20000, 0x40000000):
            pid = libc.syscall(number, flags | 17, 0, 0, 0, 0)
            if pid == 0: os._exit(0)
            print('refused' if pid < 0 else 'escaped')
        """,
        prints(*["refused"] * 11),
    ),
    Attack(
        "enters namespaces of others",
        """
        for pid in (1, OUT['caller'], OUT['victim']):
            for kind in ('mnt', 'net', 'user', 'pid'):
                attempt(lambda: os.close(os.open(f'/proc/{pid}/ns/{kind}', os.O_RDONLY)) if pid > 1 else 1 / 0)
        call('setns', 0, 0)
        """,
        refused(13, "ZeroDivisionError", "EPERM"),
    ),
    Attack(
        "mounts",
        """
        for name in ('mount', 'umount2', 'pivot_root', 'chroot', 'open_tree', 'move_mount', 'fsopen', 'fsmount',
                'fsconfig', 'fspick', 'mount_setattr'): call(name, b'/', b'tmp', 0, 0, 0)
        """,
        refused(11, "EPERM"),
    ),
    Attack(
        "opens files by handle",
        r"""
        call('open_by_handle_at', -100, b'\x08\0\0\0\1\0\0\0' + b'\0' * 8, 0)
        call('name_to_handle_at', -100, b'.', b'\0' * 64, b'\0' * 8, 0)
        """,
        refused(2, "EPERM"),
    ),
    Attack(
        "asks io_uring to act for it",
        r"""
        call('io_uring_setup', 8, b'\0' * 120)
        call('io_uring_enter', 0, 1, 1, 0, 0, 0)
        """,
        refused(2, "ENOSYS"),
    ),
    Attack(
        "handles its own page faults",
        """
        call('userfaultfd', 0)
        call('userfaultfd', 1)
        """,
        refused(2, "EPERM"),
    ),
    Attack(
        "keeps keys in the kernel",
        """
        call('add_key', b'user', b'a', b'b', 1, -2)
        call('keyctl', 0, -3, 1)
        call('request_key', b'user', b'a', 0, -2)
        """,
        refused(3, "EPERM"),
    ),
    Attack(
        "loads programs into the kernel",
        r"""
        call('bpf', 5, b'\0' * 120, 120)
        call('init_module', 0, 0, b'')
        call('finit_module', 0, b'', 0)
        call('kexec_load', 0, 0, 0, 0)
        """,
        refused(4, "EPERM"),
    ),
    Attack(
        "counts events of the machine",
        r"""
        call('perf_event_open', b'\0' * 120, -1, 0, -1, 0)
        call('syslog', 3, b' ' * 9, 9)
        """,
        refused(2, "EPERM"),
    ),
    Attack(
        "watches the file system",
        """
        call('inotify_init1', 0)
        call('fanotify_init', 0, 0)
        """,
        refused(2, "ENOSYS", "EPERM"),
    ),
    Attack(
        "asks the kernel for asynchronous input and output",
        """
        context = ctypes.c_ulong(0)
        for _ in range(3): call('io_setup', 60000, ctypes.byref(context))
        """,
        refused(3, "ENOSYS"),
    ),
    Attack(
        "calls through another architecture",
        r"""
        import struct
        code = mmap.mmap(-1, 4096, prot=7)
        code.write(b'\xb8\x14\0\0\0\xcd\x80\xc3')  # getpid of 32-bit x86
        at = ctypes.addressof(ctypes.c_char.from_buffer(code))
        print('escaped' if ctypes.CFUNCTYPE(ctypes.c_int)(at)() == os.getpid() else 'refused')
        """,
        lambda run: run.status in _EITHER,
    ),
    Attack(
        "types into a terminal",
        """
        import fcntl
        for fd in (0, 1, 2): attempt(fcntl.ioctl, fd, 0x5412, b'x')
        """,
        refused(3, "OSError"),
    ),
    Attack(
        "changes the clock, the host's name and other things of the machine",
        """
        for name in ('settimeofday', 'clock_settime', 'adjtimex', 'sethostname', 'setdomainname', 'reboot',
                'swapon', 'swapoff', 'acct', 'quotactl', 'vhangup', 'personality'): call(name, 0, 0, 0, 0)
        """,
        refused(12, "EPERM"),
    ),
    Attack(
        "dumps core",
        """
        print(*resource.getrlimit(resource.RLIMIT_CORE))
        sys.stdout.flush()
        os.abort()
        """,
        # A limit of 1 keeps also a program that the kernel would hand the core to from being started.
        lambda run: run.output == "1 1\n" and run.exit_code == 134,
    ),
    Attack(
        "raises its limits",
        """
        for what in ('CORE', 'NOFILE', 'FSIZE', 'DATA', 'CPU', 'NPROC', 'MEMLOCK', 'RTPRIO', 'NICE'):
            attempt(resource.setrlimit, getattr(resource, f'RLIMIT_{what}'), (resource.RLIM_INFINITY,) * 2)
        """,
        refused(9, "ValueError"),
    ),
]

ATTACKS = [*NETWORK, *PROCESSES, *KERNEL]
