"""The commands `key adopt`, `rotate-writer`, `revoke-writer` and `audit`: machines that add."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from castore.cli.messages import summarize
from castore.cli.options import common, json_option, print_json
from castore.cli.signed_store import signed_store, yes_option

if TYPE_CHECKING:
    from castore.cli.context import CliContext


@click.command(epilog="Example: castore key adopt --store /mnt/old --identity /media/usb/identity")
@click.option(
    "--host", metavar="NAME", default="", help="The machine's name in the store. Default: its own name."
)
@click.option("--maintain", is_flag=True, help="Also let this machine remove what others added.")
@click.option(
    "--replace", is_flag=True, help="It replaces the machine that had the name, with its role."
)
@click.option("--new-key", is_flag=True, help="Give it another key: a copy of its own is on another machine.")
@yes_option
@json_option
@common
def adopt(
    context: CliContext, host: str, maintain: bool, replace: bool, new_key: bool, yes: bool, as_json: bool
) -> None:
    """Make this machine a writer of the store. Needs the identity of an admin, who certifies its key.

    An outdated writer key of this machine is replaced.
    """
    with signed_store(context, yes=yes, use_writer_key=False) as store:
        store.keys.adopt(host, maintain=maintain, replace=replace, new_key=new_key)
        location, name, maintains = store.location, store.keys.host, store.keys.may_maintain
    if as_json:
        print_json({"store": location, "host": name})
    else:
        may = "add to, and remove what others added from," if maintains else "add to"
        summarize(f"this machine may {may} {location} now, as {name}")


@click.command(name="rotate-writer", epilog="Example: castore key rotate-writer")
@click.option(
    "--new-ids", is_flag=True, help="Also rename chunks: later snapshots share nothing with earlier ones."
)
@json_option
@common
def rotate_writer(context: CliContext, new_ids: bool, as_json: bool) -> None:
    """Create a new writer key, after the present one may have leaked. Needs the identity of an admin.

    Stored data stays, and restores. Data under the former key is refused from now on, also that of
    snapshots that other machines are taking. Machines that are writers of the store get the new key by
    themselves. A holder of the former key still knows the names of earlier services and generations, and,
    unless --new-ids is given, can test whether the store holds a chunk that they know.
    """
    with context.open_store() as store:
        store.keys.rotate(new_ids=new_ids)
        context.warn_damaged(store)
        location = store.location
    if as_json:
        print_json({"store": location, "new_ids": new_ids})
        return
    summarize(f"the store at {location} has a new writer key, and so has this machine")
    summarize("the other machines that add to it get the key with their next command")


@click.command(name="revoke-writer", epilog="Example: castore key revoke-writer web1")
@click.argument("host", metavar="HOST")
@json_option
@common
def revoke_writer(context: CliContext, host: str, as_json: bool) -> None:
    """End the certificate of a machine that was stolen or lost. Needs the identity of an admin.

    What the machine added before stays, and restores; 'castore key list' names the machines. It also draws
    a new writer key, as 'castore key rotate-writer' does, which the revoked machine does not get.
    """
    with context.open_store() as store:
        store.keys.revoke(host)
        context.warn_damaged(store)
        location = store.location
    if as_json:
        print_json({"store": location, "host": host})
        return
    summarize(f"{host} is no longer a writer of {location}; what it adds from now on is refused")
    summarize("if that machine had credentials of the storage, also replace those")


@click.command(epilog="Example: castore key audit")
@json_option
@common
def audit(context: CliContext, as_json: bool) -> None:
    """Show what each machine and admin has added, and what is not accepted.

    After a theft this shows what the machine could have done before 'castore key revoke-writer'.
    """
    from castore.cli import formatting

    with context.open_store() as store:
        found = store.keys.audit()
    if as_json:
        import msgspec

        print_json(msgspec.to_builtins(found))
        return
    for added in found.added:
        words = [f"{added.kind} {formatting.printable(added.host)}", added.key[:16], *added.roles]
        words += [f"since {formatting.local_time(added.since)}"] if added.since else []
        ended = "replaced" if added.replaced else "revoked"
        words += [f"{ended} {formatting.local_time(added.revoked)}"] if added.revoked else []
        print("  ".join(words))
        if added.generations:
            times = f"from {formatting.local_time(added.first)} to {formatting.local_time(added.last)}"
            print(f"    {formatting.count(added.generations, 'generation')}, {times}")
        if added.packs or added.sessions:
            packs = f"{formatting.count(added.packs, 'pack')} of {formatting.size(added.bytes)}"
            print(f"    {formatting.count(added.sessions, 'session')}, {packs}")
    if found.former:
        print(f"accepted under former writer keys: {formatting.count(found.former, 'object')}")
    for name, reason in sorted(found.refused.items()):
        print(f"not accepted: {name}: {formatting.one_line(reason)}")
