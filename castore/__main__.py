"""The program: `python -m castore`, and the script `castore`."""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]  # signal without the time that its enums take
import os

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
    from castore.cli.confinement import allow_confinement  # noqa: PLC0415
    from castore.cli.main import main as run  # noqa: PLC0415 - after the handler is set

    allow_confinement()
    try:
        run()
    finally:
        # The work is done: an interrupt would only print a traceback while the interpreter exits.
        _signal.signal(_signal.SIGINT, _signal.SIG_IGN)
        _signal.signal(_signal.SIGALRM, _signal.SIG_IGN)
        # Python kills itself with SIGINT, regardless of the exit code, if a KeyboardInterrupt ever passed
        # through exec() of a string, as dataclasses use while they are defined. Another exec() resets that.
        exec("")  # noqa: S102


if __name__ == "__main__":
    main()
