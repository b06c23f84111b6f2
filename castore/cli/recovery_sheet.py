"""A printed sheet from which an identity can be typed or scanned after every other copy is lost."""

from __future__ import annotations

import html
import io
import textwrap
from typing import TYPE_CHECKING, Final

import msgspec

if TYPE_CHECKING:
    from collections.abc import Sequence

    import segno

_ROW: Final = 4
"""Groups in a line."""
_QUIET: Final = 4
"""White modules around a QR code, as ISO 18004 requires."""

_LETTERS: Final = (
    "Letters a to z and digits 2 to 7; there is no 0, 1, 8 or 9. Case, spaces and line ends do not "
    "matter. The code contains the same text."
)
_WITHOUT: Final = (
    "Without castore: tools/rescue.py STORE --identity ./identity, which needs Python, pynacl, "
    "msgspec, zstandard and blake3; castore/docs/format.md gives every byte of the store."
)
_AS_INK: Final = str.maketrans(
    "\N{FULL BLOCK}\N{UPPER HALF BLOCK}\N{LOWER HALF BLOCK} ",
    " \N{LOWER HALF BLOCK}\N{UPPER HALF BLOCK}\N{FULL BLOCK}",
)
"""Exchanges dark and light in half blocks."""
_PICTURE_MM: Final = 62
"""Millimetres of a side of the code in a picture."""

_PAGE: Final = """\
<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>castore recovery sheet</title>
<style>
@page {{ size: A4; margin: 18mm }}
body {{ font: 11pt/1.45 sans-serif; color: #000; background: #fff; max-width: 174mm; margin: 0 auto }}
h1 {{ font-size: 17pt; margin: 0 0 4mm }}
table {{ border-collapse: collapse }}
td {{ padding: 0 5mm 0 0; vertical-align: top; overflow-wrap: anywhere }}
td:first-child {{ white-space: nowrap }}
.typed td, pre {{ font-family: "DejaVu Sans Mono", "Liberation Mono", monospace; white-space: pre }}
.about td:last-child {{ font: 9pt "DejaVu Sans Mono", "Liberation Mono", monospace; word-break: break-all }}
.typed {{ font-size: 13pt; margin: 3mm 0 }}
.typed td:first-child {{ font-size: 9pt; color: #555 }}
pre {{ font-size: 9pt; margin: 1mm 0 3mm; white-space: pre-wrap }}
.both {{ display: flex; justify-content: space-between; align-items: center }}
svg {{ width: 58mm; height: 58mm }}
</style></head><body>
<h1>castore recovery sheet</h1>
<table class="about">{about}</table>
<p>{meaning}</p>
<div class="both"><table class="typed">{typed}</table>{code}</div>
<p>{letters}</p>
<p>To restore, on any machine that has castore:</p>
<pre>{commands}</pre>
<p>{without}</p>
</body></html>
"""


class Sheet(msgspec.Struct, frozen=True):
    """The content of a sheet. Its only secret is the identity, in its locked or unlocked form."""

    line: str
    """The identity's text."""
    recipient: str
    """The public key; empty if only the passphrase reveals it."""
    store: str
    store_id: str
    """In hex; empty if the store cannot be read."""
    date: str

    __repr__ = object.__repr__  # without the identity

    @property
    def about(self) -> list[tuple[str, str]]:
        """Rows of the table at the top."""
        rows = [("printed", self.date), ("store", self.store), ("store id", self.store_id)]
        rows.append(("recipient", self.recipient))
        return [row for row in rows if row[1]]

    @property
    def meaning(self) -> str:
        """The explanation of the sheet."""
        from castore.crypto.identity import is_locked

        if is_locked(self.line):
            return (
                "This is the identity, locked with a passphrase. The passphrase is needed too, and is not "
                "on this sheet: keep it in another place."
            )
        return (
            "This is the identity. Everybody who reads this sheet can read everything in the store: keep it "
            "where only authorized people have access."
        )

    @property
    def typed(self) -> list[tuple[str, list[str]]]:
        """Lines to type: the numbers of the groups, and the groups."""
        from castore.crypto.identity import groups

        prefix, found = groups(self.line)
        rows = [
            (f"{at + 1} to {min(at + _ROW, len(found))}", found[at : at + _ROW])
            for at in range(0, len(found), _ROW)
        ]
        return [("begins", [prefix]), *rows]

    @property
    def commands(self) -> list[tuple[str, str]]:
        """Commands to run, and what each does."""
        import shlex

        store = shlex.quote(self.store)
        return [
            ("castore key enter ./identity", "type the text, or paste that of the code"),
            (f"castore log --store {store} --identity ./identity", "list the generations"),
            (f"castore restore SERVICE@latest ./new --store {store} --identity ./identity", "restore one"),
        ]


def _code(sheet: Sheet) -> segno.QRCode:
    """Return the QR code of an identity.

    The text is in capitals, for which a code needs little more than half the space.
    """
    import segno

    return segno.make_qr(sheet.line.upper(), error="m", boost_error=True)


def as_text(sheet: Sheet, *, terminal: bool = False) -> str:
    """Return the sheet as plain text. terminal: set black and white for the code."""
    from castore.cli.formatting import table

    lines = ["castore recovery sheet", "", table([list(row) for row in sheet.about]), ""]
    lines += [*_wrapped(sheet.meaning), ""]
    lines += [f"    {label:>8}   {'  '.join(found)}" for label, found in sheet.typed]
    lines += ["", *_wrapped(_LETTERS), "", *_blocks(_code(sheet), terminal=terminal), ""]
    lines += ["To restore, on any machine that has castore:", ""]
    for command, does in sheet.commands:
        lines += [f"    # {does}", f"    {command}"]
    return "\n".join([*lines, "", *_wrapped(_WITHOUT), ""])


def _wrapped(text: str) -> list[str]:
    return textwrap.wrap(text, 78)


def _blocks(code: segno.QRCode, *, terminal: bool) -> list[str]:
    """Return a QR code in half blocks: white ones on black for a terminal, or dark modules as ink."""
    out = io.StringIO()
    code.terminal(out, border=_QUIET, compact=True)
    lines = out.getvalue().splitlines()
    if terminal:
        return [f"\x1b[97;40m{line}\x1b[0m" for line in lines]
    # The number of rows is odd: the last line has white in its upper half, and nothing in its lower one.
    return [line.translate(_AS_INK).rstrip() for line in lines[:-1]]


def as_html(sheet: Sheet) -> str:
    """Return the sheet as a page that prints on one side of A4."""

    def rows(cells: Sequence[Sequence[str]]) -> str:
        lines = ("".join(f"<td>{html.escape(cell)}</td>" for cell in row) for row in cells)
        return "".join(f"<tr>{line}</tr>" for line in lines)

    return _PAGE.format(
        about=rows(sheet.about),
        meaning=html.escape(sheet.meaning),
        typed=rows([(label, "  ".join(found)) for label, found in sheet.typed]),
        letters=html.escape(_LETTERS),
        code=_code(sheet).svg_inline(border=_QUIET, light="#fff", omitsize=True),
        commands=html.escape("\n".join(f"# {does}\n{command}" for command, does in sheet.commands)),
        without=html.escape(_WITHOUT),
    )


def as_svg(sheet: Sheet) -> str:
    """Return the sheet as a picture of one side of A4, in millimetres."""
    code = _code(sheet)
    parts: list[str] = []
    y = 24.0

    def write(text: str, size: float = 4.0, *, mono: bool = False, gap: float = 0.0) -> None:
        nonlocal y
        family = "DejaVu Sans Mono, Liberation Mono, monospace" if mono else "sans-serif"
        parts.append(
            f'<text x="18" y="{y:.1f}" font-size="{size}" font-family="{family}" xml:space="preserve">'
            f"{html.escape(text)}</text>"
        )
        y += size * 1.45 + gap

    write("castore recovery sheet", 6.5, gap=2)
    for label, value in sheet.about:
        for at in range(0, len(value), 78):
            write(f"{'' if at else label:12}{value[at : at + 78]}", 3.1, mono=True)
    y += 3
    for line in _wrapped(sheet.meaning):
        write(line)
    y += 2
    for label, found in sheet.typed:
        write(f"{label:>8}   {'  '.join(found)}", 5, mono=True)
    y += 2
    for line in _wrapped(_LETTERS):
        write(line)
    drawn = code.svg_inline(border=_QUIET, scale=_PICTURE_MM / code.symbol_size(border=_QUIET)[0])
    parts.append(f'<g transform="translate(18 {y:.1f})">{drawn}</g>')
    y += 70
    write("To restore, on any machine that has castore:", gap=1)
    for command, does in sheet.commands:
        write(f"# {does}", 3, mono=True)
        for line in textwrap.wrap(command, 90, subsequent_indent="    ", break_on_hyphens=False):
            write(line, 3, mono=True)
    y += 3
    for line in _wrapped(_WITHOUT):
        write(line)
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" width="210mm" height="297mm" viewBox="0 0 210 297">'
        f'<rect width="210" height="297" fill="#fff"/>{"".join(parts)}</svg>\n'
    )
