"""castore verify, reindex."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from castore.cli.options import common, json_option, print_json

if TYPE_CHECKING:
    from castore.cli.opening import Common


@click.command(epilog="Example: castore verify --read-data")
@click.option("--packs", is_flag=True, help="Also compare every pack's bytes with its name.")
@click.option("--read-data", is_flag=True, help="Also open every chunk; needs an identity.")
@json_option
@common
def verify(context: Common, packs: bool, read_data: bool, as_json: bool) -> None:
    """Check that everything the generations need is there, and intact; exit code 5 if it is not."""
    import msgspec

    from castore.cli.progress import watching
    from castore.errors import DamageError
    from castore.model.tally import Tally
    from castore.upkeep.verify import verify as check

    with context.open_store() as store:
        if read_data:
            store.identity()
        tally = Tally()
        with watching() as progress:
            progress("verifying", tally)
            found = check(store, tally, packs=packs, read_data=read_data)
    if as_json:
        print_json(msgspec.to_builtins(found))
    else:
        for line in found.damage:
            print(f"damaged: {line}")
        for hit in found.affected:
            print(f"affected: {hit.service}@{hit.number}:{hit.part}: {hit.reason}")
        depth = "data read" if read_data else "bytes of packs compared" if packs else "graph walked"
        print(
            f"{found.generations} generations, {found.packs} packs, {found.nodes} nodes, "
            f"{found.chunks} references to chunks; {depth}"
        )
    if not found.sound:
        raise DamageError(
            f"{len(found.damage)} objects or chunks are damaged, "
            f"{len(found.affected)} parts of generations do not restore whole"
        )


@click.command(epilog="Example: castore reindex")
@json_option
@common
def reindex(context: Common, as_json: bool) -> None:
    """Throw the index away and build it from the store; needs no identity."""
    with context.open_store() as store:
        store.reindex()
        count = store.count_chunks()
        context.warn_damaged(store)
    if as_json:
        print_json({"chunks": count})
    else:
        print(f"the index holds {count} chunks")
