"""What this machine knows of a store: where records lie, and the generations. LMDB, rebuildable.

Everything here can be read again from the store. Entries are put only after what they tell of is
in the store, and by a session only after it is durable there. Reads are short transactions; none stays
open across I/O on the store.

    chunks, nodes   id -> place (27 bytes)
    copies          id | pack number -> place: of a record that the tables above place elsewhere
    bases           id | pack number -> ids of the bases of a delta
    features        super-feature of a sketch -> first 8 bytes of the id of the latest chunk that has it
    uses            service -> (pack number, little-endian | bytes used) of each pack that its last
                    generation is in, bases included
    packs           pack number -> pack id | length | bytes of records;   pack_numbers: the other way round
    sessions        session number -> session id;      session_numbers: the other way round
    generations     service | 0 | number -> plaintext of the record
    revisions       service | 0 | revision | 0 | number -> nothing; safety generations left out
    records         T-N, the name of a generation's object -> its key in generations
    verified        pack number -> when its bytes were last found sound, and its records (ns since 1970);
                    zeros: it was found damaged
    ended           id of a session whose generation has been here, and is gone -> nothing
    owners          pack number -> public key of who signed the pack | numbers of the sessions in it
    meta            version of this layout, store id, the next pack and session number, an epoch, the
                    numbers of condemned packs, whether `verified` was filled from the state

Numbers in keys are u32, big-endian, so that they sort.

Rooms: `tables` (layout, transactions), `lookup` (records), `packs` (put in and out), `marking` (for upkeep),
`uses` (for the reference cache), `catalog` (generations); below them `environment` (LMDB's, which
grows), `opening` (where one may be, and is begun anew), `rebuild` (all packs at once).
"""

from __future__ import annotations

from castore.store.index.generations import Catalog
from castore.store.index.liveness import Marking
from castore.store.index.locations import RecordLocation
from castore.store.index.pack_usage import Uses

__all__ = ["Index", "RecordLocation"]


class Index(Marking, Uses, Catalog):
    """The index in the folder `path`, made where there is none; safe to share between threads."""
