"""The command `snapshot`: options, choice of services and parts, and output."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

import click
import msgspec

from castore.cli.messages import note, summarize, warn
from castore.cli.options import (
    LocalPath,
    collected,
    common,
    json_option,
    print_json,
    split_named,
    split_program,
)

if TYPE_CHECKING:
    from castore.api.store import Store
    from castore.cli.context import CliContext
    from castore.cli.service_results import ServiceResults
    from castore.services.sources import Source


class TreeExcludes(msgspec.Struct, frozen=True, kw_only=True):
    """The options that exclude paths from every tree."""

    patterns: tuple[str, ...]
    one_file_system: bool
    exclude_caches: bool


class PartOptions(msgspec.Struct, frozen=True, kw_only=True):
    """The options that describe parts."""

    trees: tuple[str, ...]
    dumps: tuple[str, ...]
    programs: tuple[str, ...]
    exclude: tuple[str, ...]
    exclude_files: tuple[str, ...]
    one_file_system: bool
    exclude_caches: bool
    allow_empty: bool

    def excludes(self) -> TreeExcludes:
        """Return what applies to every tree. Raises UsageError if a file of patterns cannot be read."""
        patterns = [pattern for file in self.exclude_files for pattern in _read_patterns(file)]
        return TreeExcludes(
            patterns=(*patterns, *self.exclude),
            one_file_system=self.one_file_system,
            exclude_caches=self.exclude_caches,
        )


@click.command(
    epilog="""\b
    Example: castore snapshot drupal --revision r1 \\
               --tree sites=/var/lib/drupal/sites \\
               --exec db='mariadb-dump --skip-dump-date drupal'"""
)
@click.argument("services", metavar="[SERVICE]...", nargs=-1)
@click.option("--all", "everything", is_flag=True, help="Snapshot every service that castore.toml describes.")
@click.option("--revision", metavar="REV", help="The configuration that the state belongs to.")
@click.option(
    "--tree", "trees", metavar="NAME=DIR", multiple=True, help="Store the directory DIR as the part NAME."
)
@click.option(
    "--dump",
    "dumps",
    metavar="NAME=FILE",
    multiple=True,
    help="Store FILE as the part NAME ('-' reads standard input).",
)
@click.option(
    "--exec",
    "programs",
    metavar="NAME='ARGV'",
    multiple=True,
    help="Run a program without a shell, and store its standard output as the part NAME if it exits with 0.",
)
@click.option(
    "--exclude",
    metavar="PATTERN",
    multiple=True,
    help="Exclude paths that match PATTERN (.gitignore syntax). May be repeated.",
)
@click.option(
    "--exclude-file",
    "exclude_files",
    metavar="FILE",
    type=LocalPath(),
    multiple=True,
    help="Read exclude patterns from FILE, one per line.",
)
@click.option("--one-file-system", is_flag=True, help="Do not cross into other file systems.")
@click.option(
    "--exclude-caches", is_flag=True, help="Store only the tag file of directories that contain CACHEDIR.TAG."
)
@click.option(
    "--allow-empty", is_flag=True, help="Accept an empty dump from standard input or a pipe."
)
@click.option(
    "--dry-run", is_flag=True, help="Show what would be stored. Run no program, store nothing."
)
@json_option
@common
@collected("options", PartOptions)
def snapshot(
    context: CliContext,
    services: tuple[str, ...],
    everything: bool,
    revision: str | None,
    options: PartOptions,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Take one generation of each SERVICE, with all its parts.

    A SERVICE that castore.toml describes needs only its name. --exclude and the other tree options add to
    its settings. Without any configuration, the first snapshot creates a store and an identity, and
    prints where they are.

    The result has the bytes of files and dumps; new: the bytes, also of names and metadata, that the store
    did not have; stored: what the new bytes take in the store, encoded as deltas, compressed and encrypted.

    If one service fails, the others are still taken. The exit code is that of the worst failure.
    """
    from castore.cli.service_results import ServiceResults

    excludes = options.excludes()
    given = _given_sources(options, excludes)
    names = _chosen_services(context, services, everything=everything, given=bool(given))
    results = ServiceResults(names, collect_errors=everything or len(names) > 1)
    wanted: dict[str, dict[str, Source]] = {}
    for name in names:
        with results.service(name):
            wanted[name] = given or _configured_sources(context, name, excludes)
            _note_useless(wanted[name])
    if dry_run:
        from castore.cli.snapshot_preview import show_preview

        for name, sources in wanted.items():
            with results.service(name):
                show_preview(context, name, sources, revision, results, as_json=as_json)
    elif wanted:
        run = _SnapshotRun(context, results, revision, run_hooks=not given, as_json=as_json)
        run.take_all(wanted)
    if as_json and results.collect_errors:
        print_json(results.entries)
    results.finish()


def _read_patterns(path: str) -> list[str]:
    """Return the patterns of an --exclude-file, without comments. Raises UsageError."""
    from castore.errors import UsageError

    try:
        with open(path, encoding="utf-8-sig", errors="surrogateescape") as file:
            lines = file.read().split("\n")
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise UsageError(f"--exclude-file: cannot read {path!r}: {reason}") from None
    return [line for line in lines if line.strip() and not line.startswith("#")]


def _given_sources(options: PartOptions, excludes: TreeExcludes) -> dict[str, Source]:
    """Return the parts that options describe. Raises UsageError."""
    from castore.errors import UsageError
    from castore.fs.regular import descriptor_of, open_stream
    from castore.services.sources import Stream, Tree, file_source, program_source
    from castore.state.directories import expanded

    sources: dict[str, Source] = {}
    read: set[int] = set()

    def add(name: str, source: Source) -> None:
        if name in sources:
            raise UsageError(f"two parts are named {name!r}: give each part another NAME")
        sources[name] = source

    for text in options.trees:
        name, path = split_named("--tree", text, "DIR")
        tree = Tree(
            expanded(path),
            exclude=excludes.patterns,
            one_file_system=excludes.one_file_system,
            exclude_caches=excludes.exclude_caches,
        )
        add(name, tree)
    for text in options.dumps:
        name, path = split_named("--dump", text, "FILE")
        number = 0 if path == "-" else descriptor_of(expanded(path))
        if number in read:
            raise UsageError(f"the open file {path!r} can be read once only: give it to one --dump")
        if number is not None:
            read.add(number)
        descriptor = sys.stdin.fileno() if path == "-" else open_stream(expanded(path))
        stream = None if descriptor is None else Stream(descriptor, options.allow_empty)
        add(name, stream or file_source(expanded(path)))
    for text in options.programs:
        name, argv = split_named("--exec", text, "'ARGV'")
        add(name, program_source(split_program("--exec", argv)))
    return sources


def _chosen_services(
    context: CliContext, services: tuple[str, ...], *, everything: bool, given: bool
) -> list[str]:
    """Return the services to snapshot, each once. Raises UsageError."""
    from castore.errors import UsageError

    names = list(dict.fromkeys(services))
    if given and (everything or len(names) > 1):
        raise UsageError("--tree, --dump and --exec describe the parts of one SERVICE: name one SERVICE")
    if everything and names:
        raise UsageError(f"--all takes every service of castore.toml: leave out {names[0]!r}, or --all")
    if not everything:
        if not names:
            raise click.UsageError(
                "name a SERVICE, or --all for every service of castore.toml", click.get_current_context()
            )
        return names
    settings = context.required_settings()
    names = [*settings.faults, *(name for name, service in settings.service.items() if service.parts)]
    if not names:
        raise UsageError(
            f"{settings.path} describes no service that has parts: add one, then: castore config check"
        )
    return names


def _configured_sources(context: CliContext, service: str, excludes: TreeExcludes) -> dict[str, Source]:
    """Return the parts that castore.toml describes, with the excludes of the options. Raises UsageError."""
    from castore.services.sources import Tree, described_sources

    sources = described_sources(context.settings, service)
    for name, source in sources.items():
        if isinstance(source, Tree):
            sources[name] = msgspec.structs.replace(
                source,
                exclude=(*source.exclude, *excludes.patterns),
                one_file_system=source.one_file_system or excludes.one_file_system,
                exclude_caches=source.exclude_caches or excludes.exclude_caches,
            )
    return sources


def _note_useless(sources: dict[str, Source]) -> None:
    """Print which exclude patterns cannot match anything in any of the trees."""
    from castore.cli.formatting import printable
    from castore.content.scan.exclude import why_useless
    from castore.services.sources import Tree

    reasons: dict[str, list[str]] = {}
    for source in sources.values():
        if isinstance(source, Tree):
            for pattern in source.exclude:
                top = os.path.abspath(os.fsdecode(source.path))
                reasons.setdefault(pattern, []).append(why_useless(pattern, top))
    for pattern, found in reasons.items():
        if all(found):
            shown = printable(os.fsencode(pattern))
            note(f"the exclude pattern {shown} matches nothing: {found[0]}")


class _SnapshotRun(msgspec.Struct, frozen=True):
    """One run of the command."""

    context: CliContext
    results: ServiceResults
    revision: str | None
    run_hooks: bool
    as_json: bool

    def take_all(self, wanted: dict[str, dict[str, Source]]) -> None:
        """Take a generation of each service. The JSON of several services is printed at the end."""
        with self.context.open_store(create_default=True) as store:
            try:
                for name, sources in wanted.items():
                    with self.results.service(name):
                        self._take(store, name, sources)
            finally:
                if older := store.older_warning:
                    warn(older)

    def _take(self, store: Store, service: str, sources: dict[str, Source]) -> None:
        from castore.cli.generations import describe, plain
        from castore.cli.progress import show_progress
        from castore.errors import IncompleteError

        with show_progress() as progress:
            taken = store.service(service).snapshot(
                sources, revision=self.revision, run_hooks=self.run_hooks, progress=progress
            )
        entry = plain(taken.record)
        self.results.entries.append(entry)
        if not self.as_json:
            summarize(describe(taken.record))
        elif not self.results.collect_errors:
            print_json(entry)
        if taken.warnings:
            raise IncompleteError(f"{service}@{taken.number} is committed, but: {'; '.join(taken.warnings)}")
        if taken.skipped_files:
            self.context.report_missed(list(taken.skipped_files), taken.record)
