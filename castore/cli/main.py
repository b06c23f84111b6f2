"""The `castore` command: finds the subcommand's file, and turns errors into a line and a code.

Hooks call castore often, so this file imports click and the version, and nothing else: a
subcommand's file is imported when it runs, and the list of commands is told from the table here.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
from typing import TYPE_CHECKING, Any, Final, NamedTuple, NoReturn

import click

from castore.cli.quiet import add_quiet, quiet_option
from castore.version import __version__

if TYPE_CHECKING:

    from castore.cli.document import Document


_LATER_SECONDS: Final = 0.005


class _Lazy(NamedTuple):
    """A subcommand that is not imported yet: an object of its own name in `module`."""

    module: str
    help: str


_COMMANDS: Final = {
    "init": _Lazy("keys", "Make a store."),
    "snapshot": _Lazy("snapshot", "Take a generation of a service."),
    "log": _Lazy("reading", "List generations, newest first."),
    "show": _Lazy("reading", "Show one generation: parts, sizes, reuse."),
    "ls": _Lazy("reading", "List what a stored tree holds."),
    "cat": _Lazy("reading", "Write a stored dump or file to standard output."),
    "find": _Lazy("finding", "Search all generations for paths."),
    "history": _Lazy("finding", "List the versions of a file, a directory or a part."),
    "diff": _Lazy("reading", "Show how two generations differ."),
    "restore": _Lazy("restoring", "Restore a generation, or a part of it, to a directory."),
    "recover": _Lazy("restoring", "Complete or undo an interrupted rollback or restore."),
    "rollback": _Lazy("restoring", "Roll a service back to a generation or revision."),
    "guard": _Lazy("operating", "Run a deployment; revert it, with the state, if it fails."),
    "follow": _Lazy("operating", "Make the state match the configured revision, at boot."),
    "revision": _Lazy("operating", "Print the configured revision of a service."),
    "drill": _Lazy("operating", "Restore into a scratch directory, and check it."),
    "pin": _Lazy("pruning", "Keep a generation, whatever retention says."),
    "unpin": _Lazy("pruning", "Remove the pin of a generation."),
    "forget": _Lazy("pruning", "Delete generations by name."),
    "prune": _Lazy("pruning", "Delete generations that no rule keeps; reclaim their space."),
    "compact": _Lazy("pruning", "Reclaim the space that no generation references."),
    "events": _Lazy("operating", "List what was done, and what failed."),
    "config": _Lazy("operating", "Check, show or write castore.toml."),
    "key": _Lazy("keys", "Manage identities, recipients, admins and machines."),
    "verify": _Lazy("checking", "Check that stored data is complete and intact."),
    "repair": _Lazy("checking", "Drop damaged data; keep the rest."),
    "reindex": _Lazy("checking", "Rebuild the index from the store."),
    "stats": _Lazy("reading", "Show what the store holds, and what each step saved."),
}


class _Group(click.Group):
    """A group whose commands are imported when they are called."""

    def make_context(
        self, info_name: str | None, args: list[str], parent: click.Context | None = None, **extra: Any
    ) -> click.Context:
        """Refuse what no file name or text can hold, before anything looks at it."""
        for arg in args:
            if not _is_sound(arg):
                raise click.UsageError(f"the argument {arg[:80]!a} has a NUL or a surrogate in it")
        return super().make_context(info_name, args, parent, **extra)

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names, in the order in which a newcomer meets them."""
        return [*_COMMANDS, *super().list_commands(ctx)]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Return a command, imported."""
        lazy = _COMMANDS.get(cmd_name)
        if lazy is None:
            own = super().get_command(ctx, cmd_name)
            return own and add_quiet(own)
        module = importlib.import_module(f"castore.cli.{lazy.module}")
        return add_quiet(getattr(module, cmd_name))

    def format_commands(
        self,
        ctx: click.Context,  # noqa: ARG002 - click's signature
        formatter: click.HelpFormatter,
    ) -> None:
        """Write the list of commands, importing none."""
        rows = [(name, lazy.help) for name, lazy in _COMMANDS.items()]
        for name, command in sorted(self.commands.items()):
            rows.append((name, command.get_short_help_str()))
        with formatter.section("Commands"):
            formatter.write_dl(rows)


def _is_sound(arg: str) -> bool:
    """Whether the operating system can give castore such an argument."""
    try:
        return "\0" not in arg and bool(arg.isascii() or os.fsencode(arg))
    except UnicodeEncodeError:
        return False


@click.group(
    cls=_Group,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Example: castore snapshot etc --tree etc=/etc   (see also 'castore help', "
    "'castore help tutorial')",
    params=[quiet_option()],
)
@click.version_option(__version__, message="castore %(version)s", prog_name="castore")
def cli() -> None:
    """Keep the state of services, and roll it back with their configuration.

    SERVICE@SELECTOR:PART/PATH names anything stored; SELECTOR is a generation's number, a revision
    or its beginning, 'latest', or a date.
    """
    # Before anything is read that nobody else shall see; what only tells a version reads nothing.
    from castore.cli.hardening import close_memory
    from castore.cli.places import complete_path, take_secrets

    close_memory()
    take_secrets()
    complete_path()


@cli.command("help")
@click.argument("topic", nargs=-1, metavar="[COMMAND... | TOPIC]")
@click.pass_context
def help_(ctx: click.Context, topic: tuple[str, ...]) -> None:
    """Explain a command, or show a page of the documentation; without an argument, list both.

    Example: castore help tutorial
    """
    from castore.cli.topics import read_topic, show, topics

    assert ctx.parent is not None
    if not topic:
        click.echo(f"{ctx.parent.get_help()}\n\n{_list_of_topics(topics())}")
        return
    page = read_topic(topic[0]) if len(topic) == 1 else None
    options = _command_help(ctx.parent, topic)
    if options is None and page is None:
        known = ", ".join(topics())
        raise click.UsageError(f"there is no command or topic '{' '.join(topic)}'; topics are {known}", ctx)
    if options is not None:
        click.echo(options + ("\n" if page else ""))
    if page is not None:
        show(page)


def _command_help(context: click.Context, names: tuple[str, ...]) -> str | None:
    """Return the help of the command that these names lead to; None if there is none."""
    command = context.command
    for name in names:
        inner = command.get_command(context, name) if isinstance(command, click.Group) else None
        if inner is None:
            return None
        context, command = click.Context(inner, parent=context, info_name=name), inner
    return command.get_help(context)


def _list_of_topics(titles: dict[str, str]) -> str:
    formatter = click.HelpFormatter()
    with formatter.section("Topics (castore help TOPIC)"):
        formatter.write_dl(list(titles.items()))
    return formatter.getvalue().rstrip("\n")


def main() -> NoReturn:
    """Run castore with the arguments of this process, and exit."""
    try:
        code = _run_explained()
    except KeyboardInterrupt:
        os._exit(130)  # a second interrupt, while the first one was being reported
    sys.exit(code)


def _run_explained() -> int:
    document: Document | None = None
    try:
        _interrupt_on_signals()
        _open_standard_files()
        document = _document()
        code = _run()
        if document is not None:
            document.finish()
    except BaseException as error:  # noqa: BLE001 - every error ends as a line and a code
        return _explain(error, document)
    return code


def _document() -> Document | None:
    """Return the document that standard output is for, where --json is given."""
    if "--json" not in sys.argv:
        return None
    from castore.cli.document import Document, is_wanted

    return Document() if is_wanted(sys.argv[1:]) else None


def _run() -> int:
    # Outside of its standalone mode, click returns the argument of ctx.exit(), or what the
    # command returned, and lets errors pass.
    _escape_names()
    result = cli.main(prog_name="castore", standalone_mode=False)
    sys.stdout.flush()
    return result if isinstance(result, int) else 0


def _escape_names() -> None:
    """Show names escaped that have bytes that are not UTF-8, or letters that the locale lacks.

    Every message passes through these two files, so that no name can be an error of its own.
    """
    import codecs

    def escape(error: UnicodeError) -> tuple[str, int]:
        from castore.model.odd_text import escape_unencodable

        return escape_unencodable(error)

    codecs.register_error("castore-escape", escape)
    for file in (sys.stdout, sys.stderr):
        file.reconfigure(errors="castore-escape")  # type: ignore[union-attr]


def _open_standard_files() -> None:
    """Have something in the place of those that were closed: else files of the store would take it."""
    for descriptor, mode in ((0, "r"), (1, "w"), (2, "w")):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest that is free
            name = ("stdin", "stdout", "stderr")[descriptor]
            setattr(sys, name, open(descriptor, mode, closefd=False))  # noqa: SIM115 - until the end


def _interrupt_on_signals() -> None:
    """Let the end of the session or of the machine work like Ctrl-C: programs are ended."""
    import signal

    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if sys.unraisablehook is sys.__unraisablehook__:
        sys.unraisablehook = _unraisable
    for number in (signal.SIGTERM, signal.SIGHUP):
        # Unless whoever started castore wants it ignored, as nohup does.
        if signal.getsignal(number) is signal.SIG_DFL:
            signal.signal(number, signal.default_int_handler)


def _unraisable(unraisable: sys.UnraisableHookArgs) -> None:
    """Interrupt the program later if an interrupt arrives where nothing can be raised, as in a destructor."""
    import signal

    if issubclass(unraisable.exc_type, KeyboardInterrupt):
        # Later: raised in here, it would be ignored, too.
        signal.signal(signal.SIGALRM, signal.default_int_handler)
        signal.setitimer(signal.ITIMER_REAL, _LATER_SECONDS)
    else:
        sys.__unraisablehook__(unraisable)


def _explain(error: BaseException, document: Document | None = None) -> int:
    """Say in one line what went wrong, and in the document; return the exit code."""
    from castore.cli import places

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
    if places.debugging():
        import traceback

        traceback.print_exception(error)
    from castore.model.odd_text import message as readable

    message, code = _described(error)
    message = readable(message)
    # Standard output may be what is broken: what it still holds must not follow the message.
    _close_stdout()
    if document is not None:
        from castore.cli.document import error_fields

        with contextlib.suppress(OSError):
            document.finish(error_fields(error, code, message))
    _say(error, message)
    return code


def _described(error: BaseException) -> tuple[str, int]:
    """Return what to say of an error, and the exit code."""
    text, code = _plainly_described(error)
    return text + _limit_of_files(error, text), code


def _limit_of_files(error: BaseException, text: str) -> str:
    """Return the limit of open files and how to raise it, if an error comes from it; else nothing."""
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
        f"; castore may open {counted(limit, 'file')}, and a level of a tree needs one: raise that limit "
        "(ulimit -Hn, or LimitNOFILE= in a unit of systemd)"
    )


def _plainly_described(error: BaseException) -> tuple[str, int]:
    from castore.errors import EXIT_INTERRUPTED, CastoreError

    if isinstance(error, (click.Abort, KeyboardInterrupt)):
        return "interrupted", EXIT_INTERRUPTED
    if isinstance(error, CastoreError):
        return str(error), error.exit_code
    if isinstance(error, click.ClickException):
        return _described_usage(error), error.exit_code
    if isinstance(error, MemoryError):
        return "there is not enough memory", 1
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
        return f"{text[:80]!r} is not valid UTF-8, and only the paths of files may be so", 1
    kind = type(error).__name__
    return f"a mistake in castore: {kind}: {error} (CASTORE_DEBUG=1 shows where)", 1


def _odd_text(error: UnicodeError) -> str:
    """Return the text that could not be encoded or decoded; empty: it is not known."""
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
    """Return whether a group was called without a command: the message is then how to use it."""
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
    """Write out what standard output still holds, or throw it away: nobody may want it."""
    try:
        sys.stdout.flush()
    except (OSError, ValueError):
        # Python flushes once more at its end, and would complain.
        sink = os.open(os.devnull, os.O_WRONLY)
        os.dup2(sink, sys.stdout.fileno())
        os.close(sink)
