"""Recovery sheets: what they show, and that an identity typed from one is the same."""

from __future__ import annotations

import html
import os
import pty
import re
import stat
import subprocess
import sys
import time

import pytest
import segno
from hypothesis import given
from hypothesis import strategies as st

from castore.cli import recovery_sheet
from castore.crypto import Identity
from castore.crypto import identity as keys
from castore.crypto.identity import GROUP, check_identity, groups
from castore.errors import IdentityError

IDENTITY = Identity(bytes(range(32)))
LINE = IDENTITY.text()


@pytest.fixture(scope="module")
def locked():
    before = keys._OPERATIONS, keys._MEMORY_KIB
    keys._OPERATIONS, keys._MEMORY_KIB = 1, 8
    try:
        return IDENTITY.locked_text("sesame")
    finally:
        keys._OPERATIONS, keys._MEMORY_KIB = before


def sheet_of(line, store="/srv/it's <here>", store_id="ab" * 16):
    return recovery_sheet.Sheet(line, IDENTITY.recipient.text, store, store_id, "2026-11-26")


def modules(line):
    """The QR code that the sheet of an identity has to show, made here."""
    return [[bool(one) for one in row] for row in segno.make_qr(line.upper(), error="m").matrix]


def drawn(path, side):
    """The modules that an SVG path fills."""
    found = [[False] * side for _ in range(side)]
    for x, y, run, back in re.findall(r"M(\d+) (\d+)h(\d+)v1h-(\d+)z", path):
        assert run == back
        for at in range(int(x), int(x) + int(run)):
            found[int(y)][at] = True
    return found


def framed(code):
    side = len(code) + 8
    white = [[False] * side for _ in range(4)]
    return [*white, *([False] * 4 + row + [False] * 4 for row in code), *white]


def shown(text):
    """The modules that half blocks show, without the white around them."""
    lines = [re.sub(r"\x1b\[[0-9;]*m", "", line) for line in text.splitlines()]
    lines = [line for line in lines if line.strip() and not set(line) - set(" ▀▄█")]
    width = max(map(len, lines))
    rows = [[c in half for c in line.ljust(width)] for line in lines for half in ("▀█", "▄█")]
    rows = [row for row in rows if any(row)]
    left = min(row.index(True) for row in rows)
    return [row[left : left + len(rows)] for row in rows]


@pytest.mark.parametrize("which", ["plain", "locked"])
def test_every_form_shows_the_text_in_groups_and_the_same_code(which, locked):
    line = LINE if which == "plain" else locked
    sheet, code = sheet_of(line), modules(line)
    prefix, found = groups(line)
    assert prefix + "".join(found) == line
    assert {len(group) for group in found[:-1]} == {GROUP}
    text, page, picture = recovery_sheet.as_text(sheet), recovery_sheet.as_html(sheet), recovery_sheet.as_svg(sheet)
    assert shown(text) == code
    assert shown(recovery_sheet.as_text(sheet, terminal=True)) == code
    side = len(code) + 8
    for form in (page, picture):
        (path,) = re.findall(r'<path d="([^"]+)"', form)
        assert drawn(path, side) == framed(code)
        assert f'viewBox="0 0 {side} {side}"' in form
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
    slips = {
        body[:70] + body[71:]: "group 15",
        body[:70] + "x" + body[70:]: "group 15",
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


def secret_of(path):
    (line,) = [line for line in path.read_text().splitlines() if not line.startswith("#")]
    return line


def test_the_commands_from_file_to_paper_and_back(castore, home, tmp_path):
    store = tmp_path / "store"
    public = castore("init", store).stdout.split()[3]
    env = {"CASTORE_STORE": str(store)}
    (identity,) = home.rglob("*.identity")
    out = castore("key", "paper", env=env).stdout
    rows = re.findall(r"^ +(?:begins|\d+ to \d+)   (.*)$", out, re.MULTILINE)
    typed = "\n".join(rows).upper()
    assert str(store) in out
    assert public in out
    assert castore("key", "enter", tmp_path / "again", input=typed).stdout.strip() == public
    assert secret_of(tmp_path / "again") == secret_of(identity)
    assert stat.S_IMODE(os.stat(tmp_path / "again").st_mode) == 0o600
    castore("key", "list", "--identity", tmp_path / "again", env=env)
    for kind in ("html", "svg", "txt"):
        sheet = tmp_path / f"sheet.{kind}"
        done = castore("key", "paper", "--out", sheet, env=env)
        assert done.stdout == ""
        assert stat.S_IMODE(os.stat(sheet).st_mode) == 0o600
        assert groups(secret_of(identity))[1][3] in sheet.read_text()
        castore("key", "paper", "--out", sheet, env=env, expect=2)
    castore("key", "paper", "--out", tmp_path / "sheet.pdf", env=env, expect=2)
    assert not (tmp_path / "sheet.pdf").exists()
    # The store may be far away.
    other = {"CASTORE_STORE": "/nowhere/store"}
    assert "/nowhere/store" in castore("key", "paper", "--identity", identity, env=other).stdout
    wrong = rows[2][::-1]
    done = castore("key", "enter", tmp_path / "wrong", input="\n".join([*rows[:2], wrong, *rows[3:]]), expect=7)
    assert len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "wrong").exists()
    castore("key", "enter", tmp_path / "again", input=typed, expect=2)


def test_a_locked_identity_is_printed_and_typed_without_its_passphrase(castore, tmp_path):
    phrase = {"CASTORE_PASSPHRASE_COMMAND": "echo sesame"}
    public = castore("key", "new", tmp_path / "locked", "--passphrase", env=phrase).stdout.strip()
    out = castore("key", "paper", "--identity", tmp_path / "locked").stdout
    assert public in out
    rows = re.findall(r"^ +(?:begins|\d+ to \d+)   (.*)$", out, re.MULTILINE)
    castore("key", "enter", tmp_path / "again", input="\n".join(rows))
    assert secret_of(tmp_path / "again") == secret_of(tmp_path / "locked")
    assert castore("key", "show", "--identity", tmp_path / "again", env=phrase).stdout.split()[0] == public


def test_on_a_terminal_it_ends_with_the_last_letter(home, tmp_path):
    terminal, theirs = pty.openpty()
    argv = [sys.executable, "-m", "castore", "key", "enter", str(tmp_path / "typed")]
    process = subprocess.Popen(argv, stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True)
    os.close(theirs)
    seen = b""
    try:
        while b"an empty line ends it" not in seen:
            seen += os.read(terminal, 4096)
        prefix, found = groups(LINE)
        for line in (prefix, " ".join(found[:4]), " ".join(found[4:8]), " ".join(found[8:])):
            os.write(terminal, line.encode() + b"\n")
            time.sleep(0.05)
        while IDENTITY.recipient.text.encode() + b"\r\n" not in seen:  # else its end may not be written yet
            seen += os.read(terminal, 4096)
    finally:
        os.close(terminal)
        assert process.wait(timeout=30) == 0
    assert secret_of(tmp_path / "typed") == LINE


def test_what_a_sheet_prints_before_its_lines_may_be_typed_too(castore, home, tmp_path):
    castore("init", tmp_path / "store", "--identity", home / "identity")
    sheet = castore("key", "paper", "--store", tmp_path / "store", "--identity", home / "identity").stdout
    begin = next(i for i, line in enumerate(sheet.splitlines()) if line.strip().startswith("begins"))
    lines = "\n".join(sheet.splitlines()[begin : begin + 4])
    castore("key", "enter", home / "typed", input=lines)
    def line(path):
        return path.read_text().splitlines()[-1]
    assert line(home / "typed") == line(home / "identity")
    done = castore("key", "enter", home / "nowhere" / "typed", input=lines, expect=2)
    assert "there is no directory" in done.stderr
    assert not (home / "nowhere").exists()
