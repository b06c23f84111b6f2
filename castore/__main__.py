"""The program: `python -m castore`, and the script `castore`."""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]  # signal without the time that its enums take
import gc
import os
import sys

_NEW_OBJECTS = 50_000
TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import FrameType
    from typing import NoReturn


def _leave(number: int, frame: FrameType | None) -> NoReturn:
    del number, frame
    os._exit(130)


# No work has begun while modules are imported: Ctrl-C ends castore without a traceback. The caller may have
# SIGINT ignored, as nohup does with SIGHUP.
if _signal.getsignal(_signal.SIGINT) is _signal.default_int_handler:
    _signal.signal(_signal.SIGINT, _leave)


def main() -> NoReturn:
    """Run castore with the arguments of this process, and exit."""
    # Python searches for cycles of garbage each time some hundred more objects exist. What imports create
    # stays, and most objects of a scan are tuples that live until their batch is stored. Searches were 2 to
    # 3 % of the CPU time of a short command, and 7 % of that of a snapshot of a changed tree.
    gc.set_threshold(_NEW_OBJECTS)
    if sys.argv[1:] == ["--version"]:
        _show_version()
    from castore.cli.confinement import allow_confinement  # noqa: PLC0415
    from castore.cli.light_imports import defer_inspect  # noqa: PLC0415

    defer_inspect()
    from castore.cli.main import run_command  # noqa: PLC0415 - after the handler is set

    allow_confinement()
    try:
        code = run_command()
    finally:
        # The work is done: an interrupt would only print a traceback while the interpreter exits.
        _signal.signal(_signal.SIGINT, _signal.SIG_IGN)
        _signal.signal(_signal.SIGALRM, _signal.SIG_IGN)
        # Python kills itself with SIGINT, regardless of the exit code, if a KeyboardInterrupt ever passed
        # through exec() of a string, as dataclasses use while they are defined. Another exec() resets that.
        exec("")  # noqa: S102
    _exit_at_once(code)


def _show_version() -> None:
    """Print what the command line prints for --version, which takes three times as long to import, and exit.

    If it cannot be written, return: the command line reports that.
    """
    from castore.version import __version__  # noqa: PLC0415

    try:
        os.write(1, f"castore {__version__}\n".encode())
    except OSError:
        return
    os._exit(0)


def _exit_at_once(code: int) -> NoReturn:
    """End the process without taking down every module, which takes a tenth of a short command.

    All that has an end of its own has ended: threads, files, the index. No function is registered to run at
    exit. A profiler or a tracer writes its results later, and needs the slow way.
    """
    if sys.getprofile() is None and sys.gettrace() is None and "cProfile" not in sys.modules:
        for file in (sys.stdout, sys.stderr):
            try:
                file.flush()
            except (OSError, ValueError):
                break  # Python reports it
        else:
            os._exit(code)
    sys.exit(code)


if __name__ == "__main__":
    main()
