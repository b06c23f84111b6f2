"""How an error is reported: one line on standard error, the JSON document, the exit code."""

from __future__ import annotations

import contextlib
import os
import sys
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from castore.cli.document import Document


def explain(error: BaseException, document: Document | None = None) -> int:
    """Report an error in one line, and in the JSON document; return the exit code."""
    from castore.cli import environment

    if type(error) is RuntimeError and isinstance(error.__cause__, KeyboardInterrupt):
        # Before 3.12, Python wraps an interrupt in __set_name__, while an imported module defines a class.
        error = error.__cause__
    if isinstance(error, SystemExit):
        if document is not None:
            document.finish()
        return error.code if isinstance(error.code, int) else 1
    if isinstance(error, BrokenPipeError):
        _close_stdout()
        return 1
    if environment.debugging():
        import traceback

        traceback.print_exception(error)
    from castore.model.odd_text import message as readable

    message, code = _described(error)
    message = readable(message)
    # Standard output may be the cause; its buffered text must not follow the message.
    _close_stdout()
    if document is not None:
        from castore.cli.document import error_fields

        with contextlib.suppress(OSError):
            document.finish(error_fields(error, code, message))
    _say(error, message)
    return code


def _described(error: BaseException) -> tuple[str, int]:
    """Return the message of an error, and the exit code."""
    text, code = _plainly_described(error)
    return text + _limit_of_files(error, text), code


def _limit_of_files(error: BaseException, text: str) -> str:
    """Return the limit of open files and how to raise it if it caused the error; else an empty text."""
    import errno
    import resource

    from castore.model.counting import count as counted

    if "Too many open files" not in text:
        return ""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.errno == errno.ENFILE:
            return ""
        cause = cause.__cause__ or cause.__context__
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    return (
        f"; castore may open {counted(limit, 'file')}, and each level of a tree needs one: raise that limit "
        "(ulimit -Hn, or LimitNOFILE= in a unit of systemd)"
    )


def _plainly_described(error: BaseException) -> tuple[str, int]:
    from castore.errors import EXIT_INTERRUPTED, CastoreError

    if isinstance(error, (click.Abort, KeyboardInterrupt)):
        from castore.process.signal_shield import interrupt_notes

        # click raises Abort from the interrupt.
        notes = interrupt_notes(error) or interrupt_notes(error.__cause__)
        return ": ".join(["interrupted", *notes[:1]]), EXIT_INTERRUPTED
    if isinstance(error, CastoreError):
        return str(error), error.exit_code
    if isinstance(error, click.ClickException):
        return _described_usage(error), error.exit_code
    if isinstance(error, MemoryError):
        return "there is not enough memory", 1
    if isinstance(error, ImportError):
        return f"castore is not completely installed: {error}", 1
    if isinstance(error, OSError):
        named = isinstance(error.filename, str | bytes)
        if isinstance(error, FileNotFoundError) and not named and _lost_working_directory():
            return "the working directory was deleted: change to one that exists", 2
        where = f"{os.fsdecode(error.filename)}: " if named else ""
        return f"{where}{error.strerror or error}", 1
    if isinstance(error, UnicodeError) and (text := _odd_text(error)):
        if any(text in arg for arg in sys.argv):
            # Only paths may have bytes that are not UTF-8: no other argument can be encoded.
            return f"the argument {text[:80]!r} is not valid UTF-8", 2
        return f"{text[:80]!r} is not valid UTF-8, which only paths of files may be", 1
    kind = type(error).__name__
    return f"a mistake in castore: {kind}: {error} (CASTORE_DEBUG=1 shows where)", 1


def _odd_text(error: UnicodeError) -> str:
    """Return the text that could not be encoded or decoded; empty if it is not known."""
    if isinstance(error, UnicodeEncodeError):
        return error.object
    return os.fsdecode(bytes(error.object)) if isinstance(error, UnicodeDecodeError) else ""


def _lost_working_directory() -> bool:
    try:
        os.getcwd()
    except OSError:
        return True
    return False


def _is_usage_page(error: BaseException) -> bool:
    """Return whether a group was called without a command: the message is then its help."""
    return isinstance(error, click.UsageError) and "\n" in error.message and error.ctx is not None


def _described_usage(error: click.ClickException) -> str:
    if _is_usage_page(error):
        return error.message
    context = error.ctx if isinstance(error, click.UsageError) else None
    hint = f" (see '{context.command_path} --help')" if context is not None else ""
    return error.format_message().removesuffix(".") + hint


def _say(error: BaseException, message: str) -> None:
    from castore.cli.formatting import one_line

    line = message if _is_usage_page(error) else f"castore: {one_line(message)}"
    with contextlib.suppress(OSError):
        print(line, file=sys.stderr, flush=True)


def _close_stdout() -> None:
    """Flush standard output; discard its buffer if it cannot be written."""
    try:
        sys.stdout.flush()
    except (OSError, ValueError):
        # Python flushes again when it exits, and would report an error.
        sink = os.open(os.devnull, os.O_WRONLY)
        os.dup2(sink, sys.stdout.fileno())
        os.close(sink)
