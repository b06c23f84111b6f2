"""The index: what this machine knows of a store: the places of records, and the generations.

It is an LMDB database that can be rebuilt from the store. An entry is put only after the store has what it
describes; a session puts it only after that is durable. Reads are short transactions; none stays open during
I/O on the store.

    chunks, nodes   id -> place (27 bytes)
    copies          id | pack number -> place: further places of a record that the tables above have
    bases           id | pack number -> ids of the bases of a delta
    features        super-feature of a sketch -> first 8 bytes of the id of the latest chunk that has it
    uses            service -> (pack number, little-endian | bytes used) of each pack that its last
                    generation uses, bases included
    packs           pack number -> pack id | length | bytes of records;   pack_numbers: the reverse
    sessions        session number -> session id;      session_numbers: the reverse
    generations     service | 0 | number -> plaintext of the record
    revisions       service | 0 | revision | 0 | number -> nothing; without generations that are selected
                    by number only
    records         T-N, the name of a generation's object -> its key in generations
    verified        pack number -> when its bytes, and its records, were last found intact (ns since 1970);
                    zeros if it was found damaged
    ended           id of a session whose generation was indexed and is now deleted -> nothing
    owners          pack number -> public key that signed the pack | numbers of the sessions in it
    meta            version of this layout, store id, the next pack and session number, an epoch, the
                    numbers of packs pending deletion, whether `verified` was filled from the state

Numbers in keys are u32, big-endian, so that they sort.

Modules: `schema` (layout, transactions), `locations` (find records), `pack_tables` (add and remove packs),
`liveness` (for maintenance), `pack_usage` (for the base cache), `generations`. Below them are `lmdb_env` (the
LMDB environment, which grows), `opening` (where an index may be; damaged ones are replaced) and `bulk_load`
(index all packs in one pass).
"""

from __future__ import annotations

from castore.store.index.generations import Catalog
from castore.store.index.liveness import Marking
from castore.store.index.locations import RecordLocation
from castore.store.index.pack_usage import Uses

__all__ = ["Index", "RecordLocation"]


class Index(Marking, Uses, Catalog):
    """The index in the folder `path`, created if there is none; safe to share between threads."""
