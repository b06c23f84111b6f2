"""castore log, show, ls, cat, diff, stats."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Any

import click

from castore.cli import formatting
from castore.cli.document import times
from castore.cli.options import Count, common, host_option, json_option, print_json
from castore.cli.quiet import summarize

if TYPE_CHECKING:
    from collections.abc import Callable

    from castore.cli.context import CliContext
    from castore.model.generation import Generation, Part
    from castore.model.hosts import HostGroups
    from castore.services.selectors import Selection
    from castore.store import Store


@click.command(epilog="Example: castore log drupal --revision r1")
@click.argument("service", required=False)
@click.option("--revision", metavar="REV", help="Only of revisions that begin with REV.")
@click.option("--limit", type=Count(1), metavar="N", help="At most the N newest.")
@json_option
@common
@host_option
def log(
    context: CliContext, service: str | None, revision: str | None, limit: int | None, as_json: bool
) -> None:
    """List generations, newest first: of SERVICE, or of all services."""
    from itertools import islice

    from castore.cli.generations import plain, table
    from castore.model.hosts import ALL_HOSTS
    from castore.model.names import revision_begins
    from castore.services.events import drills
    from castore.services.selectors import unknown_service

    with context.open_store(confined=()) as store:
        store.sync_generations()
        if service is not None and store.newest(service) is None:
            raise unknown_service(store, service)
        found = store.newest_first(service) if service is not None else iter(store.generations())
        if context.host is not None:
            found = filter(_of_hosts(store, service), found)
        if revision is not None:
            found = (g for g in found if revision_begins(g.revision, revision))
        generations = list(islice(found, limit))
        groups = None
        if context.host in {None, ALL_HOSTS}:
            groups = _several_hosts(store, generations, complete=limit is None and revision is None)
        context.warn_damaged(store)
        drilled = drills(store)
        pinned = {name: store.pins(name) for name in {one.service for one in generations}}
    if as_json:
        print_json([plain(one, drilled, pinned[one.service]) for one in generations])
    elif generations:
        print(table(generations, drilled, pinned, groups, width=formatting.terminal_width()))
    else:
        which = f" of a revision that begins with {revision!r}" if revision is not None else ""
        way = "" if which else ": castore snapshot SERVICE takes one"
        summarize(f"castore: there is no generation{which}{way}", err=True)


def _several_hosts(store: Store, shown: list[Generation], *, complete: bool) -> HostGroups | None:
    """Return the hosts of what is shown; None where its services have one. complete: it is all there is."""
    from castore.model.hosts import HostGroups
    from castore.services.hosts import groups_of

    groups = HostGroups(shown, store.host_key)
    services = {one.service for one in shown}
    if len(groups.names()) > 1:
        return groups
    several = not complete and any(len(groups_of(store, one).names()) > 1 for one in services)
    return groups if several else None


def _of_hosts(store: Store, service: str | None) -> Callable[[Generation], bool]:
    """Return which generations are of the chosen host. Raises NotFoundError where a service has none."""
    from castore.errors import NotFoundError
    from castore.services.hosts import chosen

    wanted = {}
    for one in [service] if service is not None else store.services():
        try:
            wanted[one] = chosen(store, one)
        except NotFoundError:
            if service is not None:
                raise
    return lambda generation: generation.service in wanted and wanted[generation.service](generation)


@click.command(epilog="Example: castore show drupal@latest")
@click.argument("what", metavar="SERVICE@SEL[:PART[/PATH]]")
@json_option
@common
@host_option
def show(context: CliContext, what: str, as_json: bool) -> None:
    """Show one generation, or a part or path of it: sizes, and how much was already stored."""
    from castore.cli.generations import parts_table, plain
    from castore.model.names import short_revision
    from castore.services.selectors import select

    with context.open_store(confined=()) as store:
        store.sync_generations()
        selection = select(store, what)
        generation = selection.generation
        parts = [selection.part] if selection.part else list(generation.parts)
        warnings = _warnings(store, generation) if any(part.missed for part in parts) else []
        warnings = [one for one in warnings if _concerns(one, selection)]
        entry = _entry_of(store, selection) if selection.path else None
        pins = store.pins(generation.service)
        own = store.is_own(generation)
    if as_json:
        shown = plain(generation, pins=pins)
        names = {part.name for part in parts}
        shown["parts"] = [part for part in shown["parts"] if part["name"] in names]
        if entry is not None:
            shown["entry"] = _plain_entry(os.fsencode(selection.path), entry)
        print_json({**shown, "warnings": warnings})
        return
    print(f"{generation.service}@{generation.number}  {formatting.local_time(generation.time)}")
    short = short_revision(generation.revision)
    print(f"revision  {short or '-'}{f'  ({generation.revision})' if short != generation.revision else ''}")
    print(f"host      {formatting.printable(generation.host)}{'' if own else '  (not this one)'}")
    print(f"took      {formatting.duration(generation.duration)}")
    if generation.interrupted:
        print("warning   taken after a rollback that has not ended: its state may be inconsistent")
    elif generation.safety:
        print("safety    taken by a roll-back, of what it replaced")
    if generation.partial:
        print(f"partial   without {', '.join(generation.lacks)}: only its number selects it")
    if generation.number in pins:
        print(f"pinned    {formatting.printable(pins[generation.number]) or 'yes'}")
    print()
    print(parts_table(parts))
    if entry is not None:
        print(_line(os.fsencode(selection.path), entry))
    for warning in warnings:
        print(f"missed: {warning['part']}:{warning['path']}: {warning['reason']}")


def _entry_of(store: Store, selection: Selection) -> Any:
    """Return what is at the path of a selection. Raises NotFoundError, UsageError."""
    from castore.content.streams import StreamReader
    from castore.services.restore import child_of

    assert selection.part is not None
    with StreamReader(store) as reader:
        return child_of(reader, selection.part, selection.path)


def _concerns(warning: dict[str, str], selection: Selection) -> bool:
    """Whether a warning is about the part and path of a selection, or what is below."""
    if selection.part is None:
        return True
    path = selection.path.strip("/")
    below = not path or warning["path"] == path or warning["path"].startswith(path + "/")
    return below and warning["part"] == selection.part.name


def _warnings(store: Store, generation: Generation) -> list[dict[str, str]]:
    """Return which files are missing or doubtful; without an identity, that it takes one to know."""
    from castore.errors import IdentityError
    from castore.services.rollback.plan import read_details

    try:
        details = read_details(store, generation)
    except IdentityError:
        print("castore: the names of missed files need an identity to be shown", file=sys.stderr)
        return []
    return [
        {"part": part, "path": formatting.printable(path), "reason": reason}
        for part, path, reason in details.warnings
    ]


@click.command(epilog="Example: castore ls -R drupal@12:sites/default")
@click.argument("what", metavar="SERVICE@SEL[:PART[/PATH]]")
@click.option("-R", "--recursive", is_flag=True, help="List everything below, too.")
@json_option
@common
@host_option
def ls(context: CliContext, what: str, recursive: bool, as_json: bool) -> None:
    """List the content of a generation, a part, or a directory of it."""
    from castore.content.streams import StreamReader
    from castore.services.selectors import select

    with context.open_store(confined=()) as store, StreamReader(store) as reader:
        store.sync_generations()
        selection = select(store, what)
        entries = []
        for shown, child in _listed(reader, selection, recursive):
            entries.append(_plain_entry(shown, child))
            if not as_json:
                print(_line(shown, child))
        if as_json:
            print_json(entries)


def _listed(reader: Any, selection: Selection, recursive: bool) -> Any:
    from castore.content.allowance import Allowance
    from castore.content.stored_dirs import look_up, open_directory, walk

    parts = [selection.part] if selection.part else list(selection.generation.parts)
    for part in parts:
        prefix = b"" if selection.part else os.fsencode(part.name)
        if part.kind == "dump" or part.content is None:
            yield os.fsencode(part.name), part
            continue
        top = look_up(reader, part.content, os.fsencode(selection.path))
        if not selection.part and not recursive:
            yield prefix, top
            continue
        if not top.entry.is_dir:
            yield top.entry.name, top
        elif recursive:
            yield from walk(reader, top, Allowance.of([part]), prefix)
        else:
            for child in open_directory(reader, top.ref):
                yield child.entry.name, child


def _line(shown: bytes, child: Any) -> str:
    import stat

    from castore.model.generation import Part

    if isinstance(child, Part):
        return f"{'-' * 10}   - {'-':>8} {'-':>8} {child.size:>12} {'dump':>19} {child.name}"
    entry = child.entry
    user = child.owners.users.get(entry.uid, str(entry.uid))
    group = child.owners.groups.get(entry.gid, str(entry.gid))
    name = formatting.printable(shown)
    if stat.S_ISLNK(entry.st_mode):
        name += " -> " + formatting.printable(entry.extra.target)
    size = str(entry.size)
    if entry.extra.device:
        size = f"{os.major(entry.extra.device)}, {os.minor(entry.extra.device)}"
    mark = "+" if entry.extra.xattrs else " "
    return (
        f"{formatting.mode_text(entry.st_mode)}{mark} {user:>8} {group:>8} {size:>12} "
        f"{formatting.local_time(entry.mtime)} {name}"
    )


def _plain_entry(shown: bytes, child: Any) -> dict[str, Any]:
    from castore.model.generation import Part

    if isinstance(child, Part):
        return {"path": child.name, "type": "dump", "size": child.size}
    entry = child.entry
    return {
        "path": formatting.printable(shown),
        "type": _TYPES.get(entry.type, "unknown"),
        "mode": entry.mode,
        "uid": entry.uid,
        "gid": entry.gid,
        "user": child.owners.users.get(entry.uid),
        "group": child.owners.groups.get(entry.gid),
        "size": entry.size,
        **times("mtime", entry.mtime),
        "target": formatting.printable(entry.extra.target) if entry.extra.target else None,
        "xattrs": [formatting.printable(name) for name, _ in entry.extra.xattrs],
    }


_TYPES = {1: "fifo", 2: "char", 4: "dir", 6: "block", 8: "file", 10: "link", 12: "socket"}


@click.command(epilog="Example: castore cat drupal@r1:db | less")
@click.argument("what", metavar="SERVICE@SEL:PART[/PATH]")
@common
@host_option
def cat(context: CliContext, what: str) -> None:
    """Write a dump, or a file of a tree, to standard output."""
    from castore.content.streams import StreamReader
    from castore.services.restore import read
    from castore.services.selectors import select

    with context.open_store(confined=()) as store, StreamReader(store) as reader:
        store.sync_generations()
        out = sys.stdout.buffer
        for data in read(reader, select(store, what)):
            out.write(data)
        out.flush()


@click.command(epilog="Example: castore diff drupal@11 drupal@12")
@click.argument("old", metavar="SERVICE@A[:PART[/PATH]]")
@click.argument("new", metavar="SERVICE@B[:PART[/PATH]]")
@json_option
@common
@host_option
def diff(context: CliContext, old: str, new: str, as_json: bool) -> None:
    """Show what differs: paths added (+), removed (-), changed (M), metadata only (m); bytes of dumps.

    A part or path in one of the two names also applies to the other, unless that has its own.
    """
    from castore.content.streams import StreamReader
    from castore.services.selectors import select

    rows: list[dict[str, Any]] = []
    with context.open_store(confined=()) as store, StreamReader(store) as reader:
        store.sync_generations()
        for row in _diff_rows(reader, select(store, old), select(store, new)):
            rows.append(row)
            if not as_json:
                print(_diff_line(row))
    if as_json:
        print_json(rows)


_MARKS = {"added": "+", "removed": "-", "content": "M", "metadata": "m"}


def _diff_rows(reader: Any, old: Selection, new: Selection) -> Any:
    before, after = old.generation, new.generation
    if old.part is None and new.part is None:
        names = [part.name for part in before.parts]
        names += [part.name for part in after.parts if part.name not in names]
        for name in names:
            yield from _part_rows(reader, name, before.part(name), after.part(name))
        return
    named = old.part or new.part
    assert named is not None
    first = old.part or before.part(named.name)
    second = new.part or after.part(named.name)
    paths = [one.path if one.part else other.path for one, other in ((old, new), (new, old))]
    if any(paths) and first is not None and second is not None:
        yield from _path_rows(reader, named.name, (first, paths[0]), (second, paths[1]))
    else:
        yield from _part_rows(reader, named.name, first, second)


def _path_rows(reader: Any, name: str, old: tuple[Part, str], new: tuple[Part, str]) -> Any:
    """Yield what differs at a path of two trees, and below. Raises NotFoundError if neither has it."""
    from castore.content.allowance import Allowance
    from castore.content.diff import TIMES, diff_entries
    from castore.errors import NotFoundError, UsageError
    from castore.services.restore import child_of

    children: list[Any] = []
    missing: list[NotFoundError | UsageError] = []
    for part, path in (old, new):
        try:
            children.append(child_of(reader, part, path))
        except (NotFoundError, UsageError) as error:
            children.append(None)
            missing.append(error)
    if len(missing) == len(children):
        raise missing[0]
    shown = os.fsencode((new[1] or old[1]).strip("/"))
    before, after = children
    allowance = Allowance.of([old[0], new[0]], TIMES)
    for difference in diff_entries(reader, before, after, shown, allowance):
        yield {"part": name, "change": difference.change, "path": formatting.printable(difference.path)}


def _part_rows(reader: Any, name: str, old: Part | None, new: Part | None) -> Any:
    from castore.content.allowance import Allowance
    from castore.content.diff import TIMES, diff_streams, diff_trees

    if old is None or new is None or old.kind != new.kind:
        change = "added" if old is None else "removed" if new is None else "content"
        yield {"part": name, "change": change, "path": None}
    elif old.kind == "dump":
        found = diff_streams(reader.store, old.content, new.content)
        if found != (0, 0) or old.size != new.size:
            yield {
                "part": name,
                "change": "content",
                "path": None,
                "removed_bytes": found.removed,
                "added_bytes": found.added,
            }
    elif old.content is not None and new.content is not None:
        allowance = Allowance.of([old, new], TIMES)
        for difference in diff_trees(reader, old.content, new.content, allowance):
            path = formatting.printable(difference.path)
            yield {"part": name, "change": difference.change, "path": path}


def _diff_line(row: dict[str, Any]) -> str:
    line = f"{_MARKS[row['change']]} {row['part']}"
    if row["path"] is not None:
        line += f":{row['path']}"
    if "added_bytes" in row:
        added, removed = formatting.size(row["added_bytes"]), formatting.size(row["removed_bytes"])
        line += f"  {added} in new chunks, {removed} in chunks that are gone"
    return line


@click.command(epilog="Example: castore stats --json")
@json_option
@common
def stats(context: CliContext, as_json: bool) -> None:
    """Show how much the store holds, and what each step saved."""
    from castore.maintenance.stats import stats as count

    with context.open_store(confined=()) as store:
        found = count(store)
        context.warn_damaged(store)
    if as_json:
        import msgspec

        print_json(
            {**msgspec.to_builtins(found), "chunks": found.chunks, "overhead": found.overhead}
        )
        return
    rows = []
    for name, totals in [*found.services.items(), ("all", found.total)]:
        rows.append([
            name,
            str(totals.generations),
            formatting.size(totals.plain),
            formatting.size(totals.new),
            formatting.size(totals.after_delta),
            formatting.size(totals.after_compression),
            formatting.size(totals.stored),
            f"{totals.ratio:.1f}x",
        ])
    header = ["service", "generations", "plain", "dedup", "delta", "compressed", "stored", "ratio"]
    print(formatting.table(rows, header=header, right=set(range(1, 8))))
    records = found.records
    print()
    if found.pack_bytes:
        # The table tells what each generation added when it was taken, whatever was forgotten since.
        print(
            f"now: {formatting.size(found.total.plain)} of content in {formatting.size(found.pack_bytes)} "
            f"of packs, {found.total.plain / found.pack_bytes:.1f}x"
        )
    print(
        f"{formatting.count(found.packs, 'pack')}: {formatting.size(records.chunk_bytes)} in "
        f"{formatting.count(records.chunks, 'chunk')}, {formatting.size(records.node_bytes)} in nodes, "
        f"{formatting.size(found.overhead)} in footers and padding"
    )
    deltas = formatting.count(records.deltas, "chunk is a delta", "chunks are deltas")
    print(f"{deltas}, of {formatting.size(records.delta_bytes)}")
    print(
        f"kept only as bases of deltas: {formatting.count(records.bases_only, 'chunk')} of "
        f"{formatting.size(records.bases_only_bytes)}"
    )
    print(
        f"on this machine: index {formatting.size(found.index_bytes)}, "
        f"reference cache {formatting.size(found.reference_bytes)}"
    )
