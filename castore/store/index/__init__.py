"""The index: what this machine knows of a store: the locations of records, and the generations.

It is an LMDB database that can be rebuilt from the store. An entry is put only after the store has what it
describes; a session puts it only after that is durable. Reads are short transactions; none stays open during
I/O on the store.

    chunks, nodes   id -> location (27 bytes)
    copies          id | pack number -> location: further locations of a record that the tables above have
    bases           id | pack number -> ids of the bases of a delta
    features        super-feature of a sketch -> first 8 bytes of the id of the latest chunk that has it
    usage           service -> (pack number, little-endian | bytes used) of each pack that its last
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
                    number of the last rotation, the numbers of packs that new snapshots do not reference,
                    when a verification began, whether `verified` was filled from the state

Numbers in keys are u32, big-endian, so that they sort.

The class `Index` is composed of parts, each of which has tables of its own: `locations` (find records),
`packs` (add and remove packs), `generations`, `liveness` (what is needed of packs), `verification`, and
`usage` (for the base cache). They share `transactions`, `metadata` (the table `meta`) and `location_reader`
(reading locations within a transaction). Other modules: `schema` (layout), `opening` (where an index may be;
damaged ones are replaced), `lmdb_env` (an LMDB environment, whose map grows), `lmdb_files` (its files),
`bulk_load` (index all packs in one pass) and `replacement` (use what was built).
"""

from castore.store.index.index import Index
from castore.store.index.location_reader import RecordLocation

__all__ = ["Index", "RecordLocation"]
