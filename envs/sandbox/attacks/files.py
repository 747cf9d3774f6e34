"""Attacks that read or change files outside, and those that hand over what is no file of theirs."""

from __future__ import annotations

from dataclasses import replace

from envs.sandbox.attacks.attack import DEFAULT, Attack, ends, hands_over, prints, refused
from envs.sandbox.sandbox import Run, Status


def _listed(run: Run) -> bool:
    return run.status is Status.OK and set(run.output.split()) <= {"nothing", "PermissionError", "FileNotFoundError"}


READING = [
    Attack("reads files outside", "for path in OUT['files']: attempt(open, path)", refused(12)),
    Attack("reads answers beside its data", "attempt(open, 'data/../private/answers.csv')", refused(1)),
    Attack(
        "reads them by a link",
        """
        os.symlink(OUT['answers'], 'link')
        attempt(open, 'link')
        os.symlink('data/../../private', 'dir')
        attempt(open, 'dir/answers.csv')
        """,
        refused(2),
    ),
    Attack(
        "reads them by a descriptor of a directory",
        """
        fd = os.open('data', os.O_RDONLY)
        attempt(os.open, '../private/answers.csv', os.O_RDONLY, dir_fd=fd)
        attempt(os.open, '../../private/answers.csv', os.O_RDONLY, dir_fd=fd)
        """,
        refused(2),
    ),
    Attack(
        "reads by a path-only descriptor",
        """
        for path in (OUT['secret'], '/etc/passwd'):
            attempt(lambda: open(f'/proc/self/fd/{os.open(path, os.O_PATH)}').read())
            attempt(lambda: os.read(os.open(path, os.O_PATH), 1))
        """,
        refused(4, "OSError"),
    ),
    Attack(
        "lists directories outside",
        """
        for path in OUT['directories']:
            try: print('escaped' if set(os.listdir(path)) - set(OUT['shown']) else 'nothing')
            except OSError as error: print(type(error).__name__)
        """,
        _listed,
    ),
    Attack(
        "reads environments",
        """
        import glob
        print(os.environ)
        for path in glob.glob('/proc/*/environ') + ['/proc/1/environ']:
            try: print(open(path).read())
            except OSError: pass
        """,
        ends(Status.OK),
    ),
    Attack(
        "looks for command lines of others",
        """
        for pid in (OUT['caller'], OUT['victim']):
            for file in ('cmdline', 'comm', 'maps', 'status', 'root', 'cwd',
                    'exe'): attempt(open, f'/proc/{pid}/{file}')
        """,
        refused(14),
    ),
    Attack(
        "leaves through the root of a process",
        """
        for pid in (1, os.getppid(), OUT['caller']):
            for path in ('root', 'cwd'): attempt(open, f'/proc/{pid}/{path}' + OUT['secret'])
        """,
        refused(6),
    ),
    Attack(
        "imports the project",
        "for module in ('envs', 'envs.sandbox', 'rllib_exit', 'tests'): attempt(__import__, module)",
        refused(4, "ModuleNotFoundError"),
    ),
    Attack(
        "finds an open file of its caller",
        """
        for fd in range(3, 1024):
            try: os.fstat(fd)
            except OSError: continue
            print('escaped')
        """,
        prints(),
    ),
    Attack(
        "reads its own input, and a terminal",
        """
        print(os.read(0, 10))
        for path in ('/dev/tty', '/dev/console', '/dev/tty0'): attempt(open, path)
        """,
        lambda run: run.output.startswith("b''\n") and "escaped" not in run.output,
    ),
    Attack(
        "opens devices",
        """
        for device in ('mem', 'kmem', 'port', 'kmsg', 'kvm', 'vsock', 'fuse', 'net/tun', 'loop-control', 'vda',
                'sda', 'userfaultfd', 'nvidia0', 'dri/card0', 'vhost-net', 'snapshot', 'uinput', 'hwrng'):
            attempt(open, '/dev/' + device)
        """,
        refused(18),
    ),
    Attack(
        "makes devices",
        """
        for kind, number in ((0o20666, (1, 1)), (0o60666, (8, 0))):
            attempt(os.mknod, 'device', kind, os.makedev(*number))
        """,
        refused(2),
    ),
    Attack(
        "reads what the kernel tells root",
        """
        for path in ('/proc/kcore', '/proc/kallsyms', '/proc/kmsg', '/proc/1/mem', '/proc/sysrq-trigger',
                '/sys/kernel/debug', '/sys/kernel/tracing/trace', '/sys/firmware'):
            try: text = open(path, 'rb').read(1 << 16)
            except OSError as error: print(type(error).__name__)
            else: print('nothing' if not any(line[:16].strip(b'0') for line in text.splitlines()) else 'escaped')
        """,
        lambda run: run.status is Status.OK and "escaped" not in run.output,
    ),
]

WRITING = [
    Attack(
        "changes files outside",
        """
        for path in OUT['changed']:
            attempt(open, path, 'a'); attempt(os.truncate, path, 0); attempt(os.unlink, path)
            attempt(os.rename, path, 'mine'); attempt(os.link, path, 'mine'); attempt(os.symlink, 'x', path + '.new')
        """,
        refused(24, "OSError"),
    ),
    Attack(
        "makes files outside",
        """
        for path in OUT['closed']: attempt(open, path + '/new', 'w'); attempt(os.mkdir, path + '/new.d')
        attempt(os.rename, 'script.py', OUT['outside'] + '/script.py')
        attempt(os.link, 'script.py', OUT['outside'] + '/script.py')
        """,
        refused(18, "OSError"),
    ),
    Attack(
        "changes modes, times and owners outside",
        """
        for path in OUT['changed']:
            for change in (lambda: os.chmod(path, 0), lambda: os.utime(path, (1, 1)), lambda: os.chown(path, 1, 1),
                           lambda: os.setxattr(path, 'user.mark', b'1')):
                try: change()
                except OSError: pass
        """,
        ends(Status.OK),
    ),
    Attack(
        "writes by a hard link",
        """
        attempt(os.link, OUT['secret'], 'mine')
        attempt(os.link, 'data/train.csv', 'mine')
        attempt(open, 'mine')
        """,
        refused(3, "OSError"),
    ),
    Attack(
        "moves or removes its own work directory",
        """
        here = os.getcwd()
        attempt(os.rename, here, here + '.old')
        attempt(os.rmdir, here)
        attempt(os.rename, here, OUT['outside'] + '/work')
        """,
        refused(3, "OSError"),
    ),
    Attack(
        "writes into its interpreter's libraries",
        """
        attempt(open, os.path.join(os.path.dirname(os.__file__), 'sitecustomize.py'), 'w')
        attempt(open, os.__file__, 'r+')
        attempt(open, sys.executable, 'r+b')
        """,
        refused(3, "OSError"),
    ),
    Attack(
        "changes what the kernel is told through /proc and /sys",
        """
        for path in ('/proc/self/oom_score_adj', '/proc/self/oom_adj', '/proc/self/coredump_filter',
                '/proc/self/uid_map', '/proc/self/setgroups', '/proc/self/timerslack_ns', '/proc/self/autogroup',
                '/proc/self/loginuid', '/proc/self/mem', '/proc/self/comm', '/proc/self/clear_refs',
                '/proc/sys/kernel/core_pattern', '/proc/sys/vm/drop_caches', '/sys/fs/cgroup/cgroup.procs'):
            attempt(open, path, 'r+')
        """,
        refused(14, "OSError"),
    ),
    Attack(
        "sets extended attributes and file flags",
        r"""
        for at in ('script.py', '.', 'tmp'):
            for key in ('user.a', 'trusted.a', 'security.capability', 'system.posix_acl_access'):
                attempt(os.setxattr, at, key, b'1' * 20)
        import fcntl
        fd = os.open('script.py', os.O_RDONLY)
        attempt(fcntl.ioctl, fd, 0x40086602, b'\x10\0\0\0\0\0\0\0')
        """,
        refused(13, "OSError"),
    ),
]


def _gives(name: str, script: str) -> Attack:
    return Attack(f"hands over {name}", script, hands_over(), files=("submission.csv",))


HANDED_OVER = [
    _gives("a link to a secret", "os.symlink(OUT['secret'], 'submission.csv')"),
    _gives("a link to its data", "os.symlink('data/train.csv', 'submission.csv')"),
    _gives("a link to itself", "os.symlink('submission.csv', 'submission.csv')"),
    _gives("a link to a device", "os.symlink('/dev/zero', 'submission.csv')"),
    _gives("a link to what it may see of processes", "os.symlink('/proc/self/environ', 'submission.csv')"),
    _gives(
        "a hard link",
        """
        try: os.link(OUT['secret'], 'submission.csv')
        except OSError: pass
        """,
    ),
    _gives("a pipe", "os.mkfifo('submission.csv')"),
    _gives("a pipe that is open", "os.mkfifo('submission.csv'); os.open('submission.csv', os.O_RDWR)"),
    _gives("a directory", "os.mkdir('submission.csv')"),
    _gives("a directory in a directory", "os.makedirs('submission.csv/submission.csv')"),
    _gives(
        "a socket",
        """
        try: socket.socket(socket.AF_UNIX).bind('submission.csv')
        except OSError: pass
        """,
    ),
    _gives(
        "a device",
        """
        try: os.mknod('submission.csv', 0o20666, os.makedev(1, 5))
        except OSError: pass
        """,
    ),
    _gives("nothing", ""),
    _gives("a sparse file", "os.truncate(os.open('submission.csv', os.O_CREAT | os.O_WRONLY), 900 << 20)"),
    _gives("a name that only looks like it", "open('submission.csv ', 'w'); open('./submission.csv\\n', 'w')"),
    Attack(
        "hands over files by directories that are links",
        "os.symlink(OUT['outside'], 'out'); os.symlink('data', 'in'); os.symlink('/', 'root')",
        hands_over(),
        files=("out/secret.txt", "in/train.csv", "data/train.csv", "root/etc/passwd"),
    ),
    Attack(
        "hands over holes, and more than it may",
        """
        for name, size in (('a', 300), ('b', 1 << 29), ('c', 900)):
            open(name, 'wb').close(); os.truncate(name, size)
        """,
        hands_over(a=300),
        limits=replace(DEFAULT, returned_bytes=1000),
        files=("a", "b", "c"),
    ),
    Attack(
        "changes what it hands over while it ends",
        """
        if os.fork() == 0:
            while True:
                try:
                    os.symlink(OUT['secret'], 'x'); os.rename('x', 'submission.csv')
                    open('y', 'w').write('1'); os.rename('y', 'submission.csv')
                except OSError: pass
        time.sleep(0.2)
        """,
        lambda run: run.files.get("submission.csv", b"") in (b"", b"1"),
        files=("submission.csv",),
    ),
]

ATTACKS = [*READING, *WRITING, *HANDED_OVER]
