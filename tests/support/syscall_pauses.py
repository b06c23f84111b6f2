"""Pause a process before each of its system calls on files, with a seccomp user notifier.

The process is forked, installs the filter on itself and on all that it starts, and runs a function. Its
parent learns of each call before the kernel executes it, with all threads' calls in one order, and lets it go
on. Linux on x86-64; needs CAP_SYS_ADMIN.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import platform
import select
import signal
import struct
import time
import traceback
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

AT_FDCWD = -100
_SECCOMP, _PIDFD_OPEN, _PIDFD_GETFD = 317, 434, 438
_NOTIFY, _ALLOW = 0x7FC00000, 0x7FFF0000
_RECEIVE, _SEND = 0xC0502100, 0xC0182101
_NOTIFICATION = struct.Struct("<QIIiIQ6Q")
_RESPONSE = struct.Struct("<QqiI")
_CONTINUE = 1
_PR_SET_PDEATHSIG = 1

# Number: name, and the kinds of its arguments: d a directory's descriptor, p a path after it or from the working
# directory, f a descriptor of what is changed or read.
_CALLS = {
    2: ("open", "p"), 4: ("stat", "p"), 6: ("lstat", "p"), 21: ("access", "p"), 76: ("truncate", "p"),
    77: ("ftruncate", "f"), 80: ("chdir", "p"), 82: ("rename", "pp"), 83: ("mkdir", "p"), 84: ("rmdir", "p"),
    85: ("creat", "p"), 86: ("link", "pp"), 87: ("unlink", "p"), 88: ("symlink", " p"), 89: ("readlink", "p"),
    90: ("chmod", "p"), 91: ("fchmod", "f"), 92: ("chown", "p"), 93: ("fchown", "f"), 94: ("lchown", "p"),
    133: ("mknod", "p"), 188: ("setxattr", "p"), 189: ("lsetxattr", "p"), 190: ("fsetxattr", "f"),
    191: ("getxattr", "p"), 192: ("lgetxattr", "p"), 193: ("fgetxattr", "f"), 194: ("listxattr", "p"),
    195: ("llistxattr", "p"), 196: ("flistxattr", "f"), 197: ("removexattr", "p"), 198: ("lremovexattr", "p"),
    199: ("fremovexattr", "f"), 217: ("getdents64", "f"), 257: ("openat", "dp"), 258: ("mkdirat", "dp"),
    259: ("mknodat", "dp"), 260: ("fchownat", "dp"), 262: ("newfstatat", "dp"), 263: ("unlinkat", "dp"),
    264: ("renameat", "dpdp"), 265: ("linkat", "dpdp"), 266: ("symlinkat", " dp"), 267: ("readlinkat", "dp"),
    268: ("fchmodat", "dp"), 269: ("faccessat", "dp"), 280: ("utimensat", "dp"), 316: ("renameat2", "dpdp"),
    326: ("copy_file_range", "f f"), 332: ("statx", "dp"), 437: ("openat2", "dp"), 439: ("faccessat2", "dp"),
    452: ("fchmodat2", "dp"),
}  # fmt: skip

_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True)
class Call:
    """A system call that is about to be executed."""

    name: str
    paths: tuple[tuple[str, str], ...]
    """What it names: the directory, without links, and the rest, "" for the object of a descriptor."""

    def __str__(self) -> str:
        return f"{self.name} " + ", ".join(f"{folder}/{rest}".rstrip("/") for folder, rest in self.paths)


@dataclass
class Ended:
    """How a process ended."""

    code: int | None
    """The exit code, minus the signal, or None where it had to be killed after the time limit."""
    calls: int
    """How many there were that the callback wanted to see."""


def is_supported() -> str:
    """Return why it is not possible here, or ''."""
    if platform.machine() != "x86_64":
        return "the numbers of system calls are those of x86-64"
    if os.geteuid() != 0:
        return "needs root"
    sizes = ctypes.create_string_buffer(6)
    if _libc.syscall(_SECCOMP, 3, 0, sizes) != 0 or struct.unpack("HHH", sizes.raw) != (80, 24, 64):
        return "the kernel has no seccomp user notifier of this form"
    return ""


def _filter() -> ctypes.Array[ctypes.c_char]:
    """Return the program that notifies of _CALLS and allows all others."""
    numbers = sorted(_CALLS)
    program = [struct.pack("HBBI", 0x20, 0, 0, 0)]  # load the number of the call
    program += [struct.pack("HBBI", 0x15, len(numbers) - at, 0, number) for at, number in enumerate(numbers)]
    program += [struct.pack("HBBI", 0x06, 0, 0, what) for what in (_ALLOW, _NOTIFY)]
    return ctypes.create_string_buffer(b"".join(program))


def _child(run: Callable[[], None], say: int, wait: int) -> None:
    """Install the filter, give its listener to the parent, and run."""
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    program = _filter()
    count = (len(program) - 1) // 8
    descriptor = ctypes.create_string_buffer(struct.pack("HxxxxxxQ", count, ctypes.addressof(program)))
    listener = _libc.syscall(_SECCOMP, 1, 1 << 3, descriptor)  # with a new listener
    os.write(say, struct.pack("i", listener))
    os.read(wait, 1)
    os.close(say)
    os.close(wait)
    os.close(listener)
    run()


def run_paused(
    run: Callable[[], None], before: Callable[[Call], bool], limit: float = 10.0, relevant: bytes = b""
) -> Ended:
    """Run a function in a new process, with `before` called while it is paused before each call.

    before: returns whether the call counts. relevant: calls whose absolute paths do not begin with this, and whose
    descriptors are not beneath it, are not given to `before`.
    """
    say, wait = os.pipe(), os.pipe()
    pid = os.fork()
    if pid == 0:
        code = 70
        try:
            os.close(say[0])
            os.close(wait[1])
            _child(run, say[1], wait[0])
            code = 0
        except SystemExit as error:
            code = error.code if isinstance(error.code, int) else int(error.code is not None)
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    os.close(say[1])
    os.close(wait[0])
    listener, process = -1, _libc.syscall(_PIDFD_OPEN, pid, 0)
    try:
        (number,) = struct.unpack("i", os.read(say[0], 4))
        if number < 0:
            raise OSError("the process could not install its filter")  # noqa: TRY301
        listener = _libc.syscall(_PIDFD_GETFD, process, number, 0)
        os.write(wait[1], b"x")
        calls, over = _supervise(listener, process, before, limit, os.fsdecode(relevant))
    except BaseException:
        _kill(pid)
        os.waitpid(pid, 0)
        raise
    finally:
        for one in (say[0], wait[1], process, listener):
            if one >= 0:
                os.close(one)
    if over:
        _kill(pid)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    return Ended(None if over else status, calls)


def _kill(pid: int) -> None:
    """Kill a process, and what it has started where it leads a group."""
    os.kill(pid, signal.SIGKILL)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)


def _supervise(
    listener: int, process: int, before: Callable[[Call], bool], limit: float, relevant: str
) -> tuple[int, bool]:
    """Answer notifications until the process ends; return the calls that counted, and whether time ran out."""
    end = time.monotonic() + limit
    poll = select.poll()
    poll.register(listener, select.POLLIN)
    poll.register(process, select.POLLIN)
    calls = 0
    while True:
        ready = dict(poll.poll(max(0, end - time.monotonic()) * 1000))
        if listener in ready and ready[listener] & select.POLLIN:
            buffer = bytearray(_NOTIFICATION.size)
            try:
                fcntl.ioctl(listener, _RECEIVE, buffer)
            except OSError as error:
                if error.errno in {errno.ENOENT, errno.EINTR}:
                    continue  # the thread was killed meanwhile
                raise
            ident, tid, _, number, _, _, *arguments = _NOTIFICATION.unpack(buffer)
            call = _decoded(tid, number, arguments, relevant)
            if call is not None and before(call):
                calls += 1
            try:
                fcntl.ioctl(listener, _SEND, _RESPONSE.pack(ident, 0, 0, _CONTINUE))
            except OSError as error:
                if error.errno not in {errno.ENOENT, errno.EINPROGRESS}:
                    raise
        elif process in ready:
            return calls, False
        elif time.monotonic() >= end:
            return calls, True
        elif listener in ready:  # nobody has the filter any more
            poll.unregister(listener)


def _decoded(tid: int, number: int, arguments: list[int], relevant: str) -> Call | None:
    """Return a call with the paths of its arguments; None if none of them is relevant."""
    name, kinds = _CALLS[number]
    found = []
    folder = None
    try:
        for kind, value in zip(kinds, arguments, strict=False):
            if kind == "f":
                found.append((_link(tid, value), ""))
            elif kind == "d":
                folder = value
            elif kind == "p":
                text = _text(tid, value) if value else ""
                if text.startswith("/"):
                    found.append(_absolute(tid, text))
                else:
                    found.append((_link(tid, AT_FDCWD if folder is None else folder), text))
                folder = None
    except (FileNotFoundError, ProcessLookupError):
        return None
    if not any(f"{one}/{rest}".startswith(relevant) for one, rest in found):
        return None
    return Call(name, tuple(found))


def _link(tid: int, descriptor: int) -> str:
    """Return what a descriptor is open on, by the path that it has now."""
    descriptor = ctypes.c_int(descriptor & 0xFFFFFFFF).value
    return os.readlink(f"/proc/{tid}/cwd" if descriptor == AT_FDCWD else f"/proc/{tid}/fd/{descriptor}")


def _absolute(tid: int, text: str) -> tuple[str, str]:
    """Return an absolute path; one through /proc/self/fd as the descriptor and the rest."""
    words = text.split("/", 5)
    if words[1] == "proc" and words[3:4] == ["fd"] and len(words) > 4:
        return _link(tid, int(words[4])), "/".join(words[5:])
    folder, _, rest = text.rstrip("/").rpartition("/")
    return folder, rest


def _text(tid: int, address: int) -> str:
    """Return the text at an address of a process."""
    found = b""
    # Opened each time: execve(2) gives a process another memory.
    memory = os.open(f"/proc/{tid}/mem", os.O_RDONLY | os.O_CLOEXEC)
    try:
        while b"\0" not in found and len(found) < 4096:
            # Up to the end of the page: the next one may not be mapped.
            length = 4096 - (address + len(found)) % 4096
            piece = os.pread(memory, length, address + len(found))
            if not piece:
                break
            found += piece
    finally:
        os.close(memory)
    return os.fsdecode(found.split(b"\0", 1)[0])
