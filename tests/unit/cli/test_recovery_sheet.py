"""Recovery sheets: what they show, and that an identity typed from one is the same."""

from __future__ import annotations

import html
import re

import pytest
import segno
from hypothesis import given
from hypothesis import strategies as st

from castore.cli import recovery_sheet
from castore.crypto import Identity
from castore.crypto.identity import GROUP, check_identity, groups
from castore.errors import IdentityError

IDENTITY = Identity(bytes(range(32)))
LINE = IDENTITY.text()


@pytest.fixture(scope="module")
def locked():
    return IDENTITY.locked_text("sesame")


def sheet_of(line, store="/srv/it's <here>", store_id="ab" * 16):
    return recovery_sheet.Sheet(line, IDENTITY.recipient.text, store, store_id, "2026-11-26")


def modules(line):
    """The QR code that the sheet of an identity has to show, made here."""
    return [[bool(one) for one in row] for row in segno.make_qr(line.upper(), error="m").matrix]


def drawn(path, side):
    """The modules that an SVG path draws as strokes of one unit, in the middle of their rows."""
    found = [[False] * side for _ in range(side)]
    x = y = 0.0
    for kind, one, other in re.findall(r"([Mmh])(-?[\d.]+)(?: (-?[\d.]+))?", path):
        if kind == "h":
            for at in range(round(x), round(x + float(one))):
                found[int(y)][at] = True
            x += float(one)
        else:
            x, y = (float(one), float(other)) if kind == "M" else (x + float(one), y + float(other))
    return found


def framed(code):
    side = len(code) + 8
    white = [[False] * side for _ in range(4)]
    return [*white, *([False] * 4 + row + [False] * 4 for row in code), *white]


def shown(text):
    """The dark modules that half blocks show, without the white around them."""
    lines = [re.sub(r"\x1b\[[0-9;]*m", "", line) for line in text.splitlines()]
    lines = [line for line in lines if line.strip() and not set(line) - set(" ▀▄█")]
    width = max(map(len, lines))
    rows = [[c in half for c in line.ljust(width)] for line in lines for half in ("▀█", "▄█")]
    rows = [row for row in rows if any(row)]
    left = min(row.index(True) for row in rows)
    return [row[left : left + len(rows)] for row in rows]


def shown_on_terminal(text):
    """The dark modules of a code that is drawn in white on black, whatever the colours of the terminal."""
    lines = re.findall(r"\x1b\[97;40m(.*)\x1b\[0m", text)
    rows = [[c not in half for c in line] for line in lines for half in ("▀█", "▄█")]
    assert not any(map(any, [*rows[:4], *([*row[:4], *row[-4:]] for row in rows[:-1])])), "no quiet zone"
    return [row[4:-4] for row in rows[4:-5]]


@pytest.mark.parametrize("which", ["plain", "locked"])
def test_every_form_shows_the_text_in_groups_and_the_same_code(which, locked):
    line = LINE if which == "plain" else locked
    sheet, code = sheet_of(line), modules(line)
    prefix, found = groups(line)
    assert prefix + "".join(found) == line
    assert {len(group) for group in found[:-1]} == {GROUP}
    text, page, picture = recovery_sheet.as_text(sheet), recovery_sheet.as_html(sheet), recovery_sheet.as_svg(sheet)
    assert shown(text) == code
    assert shown_on_terminal(recovery_sheet.as_text(sheet, terminal=True)) == code
    side = len(code) + 8
    for form in (page, picture):
        (path,) = re.findall(r'stroke="#000" d="([^"]+)"', form)
        assert drawn(path, side) == framed(code)
    assert f'viewBox="0 0 {side} {side}"' in page
    (width,) = re.findall(r'<g transform="translate[^<]*<svg width="([\d.]+)"', picture)
    assert abs(float(width) - 62) < 0.1
    for form in (text, page, picture):
        plain = html.unescape(form)
        for group in (*found, "castore key enter", "castore log", "castore restore", "rescue.py"):
            assert group in plain
        for fact in ("2026-11-26", "ab" * 16, IDENTITY.recipient.text, "/srv/it's <here>"):
            assert fact in plain
        assert ("passphrase is needed too" in " ".join(plain.split())) == (which == "locked")
    assert LINE not in repr(sheet)


def test_a_sheet_without_a_store_or_recipient_leaves_them_out():
    sheet = recovery_sheet.Sheet(LINE, "", "/store", "", "2026-11-26")
    assert [label for label, _ in sheet.about] == ["printed", "store"]


noise = st.sampled_from(["", "", "", " ", "-", "\n", "  \n", " - ", "\t"])


@given(st.data(), st.booleans(), st.booleans())
def test_however_it_is_typed_it_is_the_same(data, upper, whole):
    letters = LINE if whole else LINE.removeprefix("castore-identity-")
    typed = "".join(letter + data.draw(noise) for letter in letters)
    typed = typed.upper() if upper else typed
    assert Identity.parse(f"# a note\n{typed}\n", None).recipient == IDENTITY.recipient
    assert check_identity(typed) == LINE


@given(st.integers(0, 57), st.sampled_from("abcdefghijklmnopqrstuvwxyz234567"))
def test_the_group_with_a_wrong_letter_is_named(at, letter):
    body = LINE.removeprefix("castore-identity-")
    if body[at] == letter:
        return
    wrong = body[:at] + letter + body[at + 1 :]
    with pytest.raises(IdentityError) as refused:
        check_identity("castore-identity-" + wrong)
    assert f"group {at // GROUP + 1}, at letter {at % GROUP + 1}" in str(refused.value)
    assert body[at - at % GROUP :][:GROUP] not in str(refused.value), "the right letters are not shown"


def test_other_slips_are_named_too(locked):
    body = locked.removeprefix("castore-locked-")
    swapped = next(at for at in range(60, 160) if body[at] != body[at + 1])
    # Where equal letters are neighbours, the slip can be in either group.
    at = next(at for at in range(60, 150, 5) if len({*body[at - 2 : at + 3], "x"}) == 6)
    slips = {
        body[:at] + body[at + 1 :]: f"group {at // 5 + 1}",
        body[:at] + "x" + body[at:]: f"group {at // 5 + 1}",
        body[:swapped] + body[swapped + 1] + body[swapped] + body[swapped + 2 :]: f"group {swapped // 5 + 1}",
        body[:51] + "0" + body[52:99] + "!" + body[100:]: "group 11, 20 has a character that is neither",
        body[:-9]: "151 letters after castore-locked- instead of 160",
        "".join(sorted(body)): "its checksum does not match",
    }
    for wrong, said in slips.items():
        with pytest.raises(IdentityError, match=said):
            check_identity("castore-locked-" + wrong)
    for text in ("", "nothing", IDENTITY.recipient.text, "castore-identity-"):
        with pytest.raises(IdentityError):
            check_identity(text)
