"""Names and texts in SQL for MariaDB and MySQL."""

from __future__ import annotations

import os


def quoted(name: str) -> str:
    """Return a name quoted for SQL."""
    return "`" + name.replace("`", "``") + "`"


def literal(text: str) -> str:
    """Return a text as an SQL literal that is valid in every sql_mode."""
    return "0x" + os.fsencode(text).hex() if text else "''"
