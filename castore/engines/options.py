"""Options of dump programs with which a dump could not be rolled back to."""

from __future__ import annotations

from castore.errors import CastoreError


def refuse_filters(options: tuple[str, ...], filters: tuple[str, ...]) -> None:
    """Raise CastoreError if an option of the dump program leaves out what a rollback has to restore."""
    for option in options:
        for rule in filters:
            if option == rule or (
                option.startswith(rule) and (rule.startswith("--") or len(option) > len(rule))
            ):
                raise CastoreError(
                    f"the option {option} leaves something out of the dump, and a rollback replaces the "
                    "whole database: remove the option, or use the engine command; nothing was changed"
                )


def refuse_elsewhere(options: tuple[str, ...], leading: tuple[str, ...]) -> None:
    """Raise CastoreError if an option has the dump itself name the database that it is loaded into."""
    for option in options:
        if any(option == word or (word.startswith("--") and option.startswith(word)) for word in leading):
            raise CastoreError(
                f"with the option {option} the dump names its database itself and would go into the live "
                "database: remove the option; nothing was changed"
            )
