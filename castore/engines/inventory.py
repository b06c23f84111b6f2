"""The content of a database in brief, to compare a staged copy with what was dumped."""

from __future__ import annotations

from typing import Final

from castore.errors import CastoreError

Inventory = dict[str, str]
"""The content of a database: for "KIND NAME" the fingerprint of a definition, for "rows of NAME" a count."""

INVENTORY: Final = "inventory"
"""The key in a dump's preamble of the inventory of the database, where it has one."""

_MOST_NAMED: Final = 8
"""How many differing objects a message names."""


def differences(expected: Inventory, found: Inventory) -> list[str]:
    """Return how `found` differs from `expected`, each difference as "the view a.b is missing"."""
    return [
        *(f"the {name} is missing" for name in sorted(expected.keys() - found.keys())),
        *(f"the {name} should not exist" for name in sorted(found.keys() - expected.keys())),
        *(
            f"the {name}: {found[name]} instead of {expected[name]}"
            if name.startswith("rows of ")
            else f"the {name} has another definition"
            for name in sorted(expected.keys() & found.keys())
            if expected[name] != found[name]
        ),
    ]


def refuse_difference(what: str, expected: Inventory, found: Inventory) -> None:
    """Raise CastoreError if a staged database differs from what was recorded when its dump was taken.

    what: the database, for the message.
    """
    named = differences(expected, found)
    if named:
        more = f"; and {len(named) - _MOST_NAMED} more" if len(named) > _MOST_NAMED else ""
        raise CastoreError(
            f"the dump of {what} does not restore to what was recorded when it was taken: "
            f"{'; '.join(named[:_MOST_NAMED])}{more}; nothing was replaced (castore restore writes the dump "
            "to a file, to load it by hand)"
        )
