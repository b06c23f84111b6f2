"""The `castore` command: imports the module of the subcommand, runs it, and reports errors.

Hooks call castore often, so this module imports only click and the version. The module of a subcommand is
imported when the subcommand runs; `castore --help` prints the table of commands that is here.
"""

from __future__ import annotations

import importlib
import os
import sys
from typing import TYPE_CHECKING, Any, Final, NoReturn

import click

from castore.cli.messages import add_quiet, quiet_option
from castore.version import __version__

if TYPE_CHECKING:
    from castore.cli.document import Document

_LATER_SECONDS: Final = 0.005
_SECTIONS: Final = {
    "Set up": {
        "init": "Create a store.",
        "serve": "Give castore on other machines access to a store.",
        "config": "Check, show or write castore.toml.",
        "store": "Test the places that stores are kept in.",
        "key": "Manage identities, recipients, admins and machines.",
    },
    "Take and look": {
        "snapshot": "Take a generation of a service.",
        "log": "List generations, newest first.",
        "show": "Show one generation: parts, sizes, reuse.",
        "ls": "List what a stored tree holds.",
        "cat": "Write a stored dump or file to standard output.",
        "find": "Search all generations for paths.",
        "history": "List the versions of a file, a directory or a part.",
        "diff": "Show how two generations differ.",
    },
    "Restore and roll back": {
        "restore": "Restore a generation, or a part of it, to a directory.",
        "rollback": "Roll a service back to a generation or revision.",
        "recover": "Complete or undo an interrupted rollback or restore.",
        "guard": "Run a deployment; revert it, with the state, if it fails.",
        "follow": "Make the state match the configured revision, at boot.",
        "revision": "Print the configured revision of a service.",
        "drill": "Restore into a scratch directory, and check it.",
    },
    "Keep and delete": {
        "pin": "Keep a generation, whatever retention says.",
        "unpin": "Remove the pin of a generation.",
        "forget": "Delete generations by name.",
        "prune": "Delete generations that no rule keeps; reclaim their space.",
        "compact": "Reclaim the space that no generation references.",
    },
    "Check and repair": {
        "stats": "Show what the store holds, and what each step saved.",
        "events": "List what was done, and what failed.",
        "verify": "Check that stored data is complete and intact.",
        "repair": "Drop damaged data; keep the rest.",
        "reindex": "Rebuild the index from the store.",
        "analyze": "Show what data would take, with different settings.",
        "help": "Show the help of a command, or a page of the documentation.",
    },
}
"""Sections of `castore --help`, and their commands, each with the line that is shown."""
_COMMANDS: Final = {name: line for commands in _SECTIONS.values() for name, line in commands.items()}
_SHARED_MODULES: Final = {"unpin": "pin"}
"""Commands in the module of another."""


class _Group(click.Group):
    """A group that imports the module of a command when the command is called."""

    def make_context(
        self, info_name: str | None, args: list[str], parent: click.Context | None = None, **extra: Any
    ) -> click.Context:
        """Refuse arguments that no file name or text can contain, before they are parsed."""
        for arg in args:
            if not _is_sound(arg):
                raise click.UsageError(f"the argument {arg[:80]!a} has a NUL or a surrogate in it")
        return super().make_context(info_name, args, parent, **extra)

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names of all commands, in the order of the table."""
        return [*_COMMANDS, *super().list_commands(ctx)]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Return a command, imported."""
        if cmd_name not in _COMMANDS:
            return super().get_command(ctx, cmd_name)
        from castore.cli.light_imports import import_msgspec
        from castore.process.own_process import is_own_process

        if is_own_process():
            import_msgspec()  # before a module that imports it
        module = importlib.import_module(f"castore.cli.commands.{_SHARED_MODULES.get(cmd_name, cmd_name)}")
        return add_quiet(getattr(module, cmd_name))

    def format_commands(
        self,
        ctx: click.Context,  # noqa: ARG002 - click's signature
        formatter: click.HelpFormatter,
    ) -> None:
        """Write the commands by section, importing none."""
        width = max(map(len, _COMMANDS))
        for title, commands in _SECTIONS.items():
            with formatter.section(title):
                formatter.write_dl([(name.ljust(width), line) for name, line in commands.items()])


def _is_sound(arg: str) -> bool:
    """Return whether the operating system can pass such an argument to castore."""
    try:
        return "\0" not in arg and bool(arg.isascii() or os.fsencode(arg))
    except UnicodeEncodeError:
        return False


@click.group(
    cls=_Group,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Example: castore snapshot etc --tree etc=/etc\n\n"
    "See also 'castore help' and 'castore help tutorial'.",
    params=[quiet_option()],
)
@click.version_option(__version__, message="castore %(version)s", prog_name="castore")
def cli() -> None:
    """Keep the state of services, and roll it back with their configuration.

    SERVICE@SELECTOR:PART/PATH names anything stored; SELECTOR is a generation's number, a revision
    or its beginning, 'latest', or a date.
    """
    # Before any secret is read. --version ends earlier, and reads none.
    from castore.cli.environment import complete_path, take_secrets
    from castore.cli.hardening import close_memory
    from castore.process.own_process import freeze_imported, keep_freed_memory

    keep_freed_memory()
    freeze_imported()
    close_memory()
    take_secrets()
    complete_path()


def main() -> NoReturn:
    """Run castore with the arguments of this process, and exit."""
    sys.exit(run_command())


def run_command() -> int:
    """Run castore with the arguments of this process; return its exit code."""
    try:
        return _run_explained()
    except KeyboardInterrupt:
        os._exit(130)  # a second interrupt, while the first one was being reported


def _run_explained() -> int:
    document: Document | None = None
    try:
        _own_process()
        _open_standard_files()
        document = _document()
        code = _run()
        if document is not None:
            document.finish()
    except BaseException as error:  # noqa: BLE001 - every error ends as a line and a code
        from castore.cli.error_report import explain

        return explain(error, document)
    return code


def _document() -> Document | None:
    """Return the JSON document of this run if --json is given; it replaces standard output."""
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
    """Escape bytes that are not UTF-8, and characters that the locale lacks, in all output.

    Every message passes through these two files, so no name in a message can raise an error.
    """
    import codecs

    def escape(error: UnicodeError) -> tuple[str, int]:
        from castore.model.odd_text import escape_unencodable

        return escape_unencodable(error)

    codecs.register_error("castore-escape", escape)
    for file in (sys.stdout, sys.stderr):
        file.reconfigure(errors="castore-escape")  # type: ignore[union-attr]


def _open_standard_files() -> None:
    """Open /dev/null for each standard file that is closed: files of the store would get its descriptor."""
    for descriptor, mode in ((0, "r"), (1, "w"), (2, "w")):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest that is free
            name = ("stdin", "stdout", "stderr")[descriptor]
            setattr(sys, name, open(descriptor, mode, closefd=False))  # noqa: SIM115 - until the end


def _own_process() -> None:
    """Set what concerns the whole process: castore as a library sets nothing of it.

    SIGTERM and SIGHUP are handled like Ctrl-C, so that castore ends the programs that it runs.
    """
    import signal

    from castore.process.own_process import declare_own_process

    declare_own_process()
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if sys.unraisablehook is sys.__unraisablehook__:
        sys.unraisablehook = _unraisable
    for number in (signal.SIGTERM, signal.SIGHUP):
        # Unless the caller has it ignored, as nohup does.
        if signal.getsignal(number) is signal.SIG_DFL:
            signal.signal(number, signal.default_int_handler)


def _unraisable(unraisable: sys.UnraisableHookArgs) -> None:
    """Interrupt the program later if an interrupt arrives where nothing can be raised, as in a destructor."""
    import signal

    if issubclass(unraisable.exc_type, KeyboardInterrupt):
        # By a timer: an exception that is raised in this hook is also ignored.
        signal.signal(signal.SIGALRM, signal.default_int_handler)
        signal.setitimer(signal.ITIMER_REAL, _LATER_SECONDS)
    else:
        sys.__unraisablehook__(unraisable)
