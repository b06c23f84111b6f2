"""Options of dump programs with which a dump could not be rolled back to."""

from __future__ import annotations

from castore.errors import CastoreError


def refuse_filters(options: tuple[str, ...], filters: tuple[str, ...]) -> None:
    """Raise CastoreError if an option of the dump program leaves out what a rollback has to restore."""
    for option in options:
        for one in filters:
            if option == one or (option.startswith(one) and (one.startswith("--") or len(option) > len(one))):
                raise CastoreError(
                    f"the option {option} leaves something out of the dump, and a rollback replaces the "
                    "whole database: remove the option, or use the engine command; nothing was changed"
                )


def refuse_elsewhere(options: tuple[str, ...], leading: tuple[str, ...]) -> None:
    """Raise CastoreError if an option has the dump itself name the database that it is loaded into."""
    for option in options:
        if any(option == one or (one.startswith("--") and option.startswith(one)) for one in leading):
            raise CastoreError(
                f"with the option {option} the dump names its database itself and would go into the live "
                "database: remove the option; nothing was changed"
            )
