"""As a library, castore changes no setting of the process that it is used in."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

_PROGRAM = """
import builtins, faulthandler, gc, locale, os, resource, signal, sys, threading, warnings

changed = []

def refuse(module, name, reads=lambda *given, **named: False):
    real = getattr(module, name)
    def called(*given, **named):
        frame = sys._getframe(1)
        if "castore" in frame.f_globals.get("__name__", "") and not reads(*given, **named):
            changed.append(f"{module.__name__}.{name} in {frame.f_globals['__name__']}")
        return real(*given, **named)
    setattr(module, name, called)

for module, names in (
    (signal, "signal set_wakeup_fd siginterrupt setitimer alarm"),
    (resource, "setrlimit"),
    (faulthandler, "enable disable register"),
    (os, "umask putenv unsetenv chdir fchdir nice setpriority dup2"),
    (gc, "disable enable freeze set_threshold"),
    (warnings, "simplefilter filterwarnings catch_warnings"),
    (sys, "setrecursionlimit setswitchinterval settrace setprofile"),
    (threading, "stack_size settrace"),
):
    for name in names.split():
        refuse(module, name)
refuse(locale, "setlocale", reads=lambda _category, value=None: value is None)

def settings():
    limits = {name: resource.getrlimit(getattr(resource, name)) for name in dir(resource) if name.startswith("RLIMIT_")}
    mask = os.umask(0o22)
    os.umask(mask)
    with open("/proc/self/status") as file:
        kept = [line for line in file if line.startswith(("SigIgn", "SigBlk", "NoNewPrivs", "Seccomp:"))]
    return {
        "handlers": {number: signal.getsignal(number) for number in signal.valid_signals()},
        "mask": signal.pthread_sigmask(signal.SIG_BLOCK, ()),
        "limits": limits, "umask": mask, "environ": dict(os.environ), "cwd": os.getcwd(),
        "recursion": sys.getrecursionlimit(), "fault": faulthandler.is_enabled(), "gc": (gc.isenabled(), gc.get_threshold()),
        "hooks": (sys.excepthook, sys.unraisablehook, threading.excepthook, sys.displayhook),
        "streams": (sys.stdin, sys.stdout, sys.stderr), "locale": locale.setlocale(locale.LC_ALL),
        "kernel": kept,
        "threads": threading.active_count(), "files": sorted(os.listdir("/proc/self/fd")),
    }

# An import may install what it needs for itself before the comparison, but nothing global either.
before = settings()
import castore, castore.testing
from castore.errors import CastoreError

def use():
    live = os.path.join(sys.argv[1], threading.current_thread().name)
    os.makedirs(os.path.join(live, "tree", "sub"))
    def write(text):
        for name in ("tree/sub/file", "dump"):
            with open(os.path.join(live, name), "w") as file:
                file.write(text)
    write("first")
    parts = {
        "t": castore.Tree(os.path.join(live, "tree"), exclude=("[--9]x", "[[b]")),
        "d": castore.File(path=os.path.join(live, "dump")),
    }
    with castore.testing.temporary_store() as store:
        service = store.service("web")
        taken = service.snapshot(parts, revision="r1")
        service.snapshot({"out": castore.Command(program=("echo", "hello"))})
        write("second, and longer")
        service.rollback(to="r1")
        with open(os.path.join(live, "dump")) as file:
            assert file.read() == "first"
        taken.restore(os.path.join(live, "restored"))
        assert taken.part("d").open().read() == b"first"
        store.prune(castore.Retention(last=1))
        store.verify(sample=1.0)
        try:
            service.rollback(to="nothing")
        except CastoreError:
            pass

if sys.argv[2] == "main":
    use()
else:
    failures = []
    def run():
        try:
            use()
        except BaseException as error:
            failures.append(error)
    thread = threading.Thread(target=run, name="other")
    thread.start()
    thread.join()
    if failures:
        raise failures[0]
after = settings()
assert not changed, changed
for key, value in before.items():
    assert after[key] == value, (key, value, after[key])
"""


@pytest.mark.parametrize("thread", ["main", "other"])
def test_the_api_leaves_the_settings_of_its_process_as_they_are(tmp_path: Path, home: Path, thread: str) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(_PROGRAM), str(tmp_path), thread],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_process_of_its_own_raises_its_limit_and_records_a_crash(tmp_path: Path) -> None:
    program = """
        import faulthandler, os, resource, signal, sys
        from castore.process import own_process

        resource.setrlimit(resource.RLIMIT_NOFILE, (64, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
        own_process.raise_file_limit()
        assert own_process.record_crash(sys.argv[1]) == -1
        assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] == 64
        own_process.declare_own_process()
        own_process.raise_file_limit()
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        assert soft == hard
        held = own_process.record_crash(sys.argv[1])
        assert held >= 0 and own_process.record_crash(sys.argv[1]) == -1
        own_process.stop_recording(held)
        assert not faulthandler.is_enabled() and not os.path.getsize(sys.argv[1])
        own_process.record_crash(sys.argv[1])
        os.kill(os.getpid(), signal.SIGBUS)
    """
    command = [sys.executable, "-c", textwrap.dedent(program), str(tmp_path / "crashes")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == -7, done.stderr
    assert "Bus error" in (tmp_path / "crashes").read_text()
