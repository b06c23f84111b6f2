"""What MariaDB's programs write: scripts of tables, sections, and messages without values."""

from __future__ import annotations

import pytest

from castore.engines.mariadb.script import (
    Observed,
    Sections,
    TableScript,
    normal,
    plain,
    record_line,
    unescaped,
    unqualified,
)
from castore.errors import CastoreError

HEAD = b"""-- castore: {"charset": ["utf8mb4", "utf8mb4_bin"]}
/*M!999999\\- enable the sandbox mode */
-- MariaDB dump 10.19  Distrib 10.11.19-MariaDB, for debian-linux-gnu (x86_64)
-- Host: localhost    Database: it's
--
/*!40101 SET NAMES utf8mb4 */;
CREATE SEQUENCE `seq` start with 1 minvalue 1 ENGINE=InnoDB;
DO SETVAL(`seq`, 77, 0);
CREATE TABLE `a``b` (
  `x` bigint(11) DEFAULT nextval(`li``ve`.`seq`) COMMENT 'don''t; -- nextval(`li``ve`.`seq`)
INSERT INTO `no` VALUES
(1);
',
  `y` text DEFAULT 'CREATE TABLE `no` (',
) ENGINE=InnoDB AUTO_INCREMENT=7 DEFAULT CHARSET=latin1;
"""
ROWS = b"""INSERT INTO `a``b` VALUES
(1,'INSERT INTO `no` VALUES (5);\\n'),
(2,'it\\'s; \\"odd'),
(3,0x00);
INSERT INTO `c` (`id`, `a)`) VALUES (4,'x'),
(5,'y');
CREATE TABLE `empty` (
  `x` int(11)
);
INSERT INTO `a``b` VALUES
(4,'x');
"""
SCRIPT = HEAD + ROWS + b"-- Dump completed\n"
WANTED = SCRIPT.replace(b"DEFAULT nextval(`li``ve`.`seq`)", b"DEFAULT nextval(`seq`)")
SIZES = [1, 2, 7, 64, 100, 1 << 20]


def pieces(script: bytes, size: int) -> list[bytes]:
    return [script[at : at + size] for at in range(0, len(script), size)]


@pytest.mark.parametrize("size", SIZES)
def test_definitions_and_rows_are_found_and_names_of_the_database_left_out(size: int):
    script = TableScript("li`ve")
    out = b"".join(b"".join(script.feed(piece)) for piece in pieces(SCRIPT, size)) + b"".join(script.close())
    assert out == WANTED
    assert list(script.created) == ["seq", "a`b", "empty"]
    assert script.created["a`b"].endswith(b"AUTO_INCREMENT=7 DEFAULT CHARSET=latin1")
    assert script.rows == {"a`b": 4, "c": 2}
    assert script.values == {"seq": 77}


def test_a_backslash_has_no_meaning_where_the_mode_says_so():
    modes = b"/*!50003 SET sql_mode              = 'ANSI,NO_BACKSLASH_ESCAPES' */ ;\n", b"/*!50003 SET sql_mode              = '' */ ;\n"
    for mode, found in zip(modes, (["t"], []), strict=True):
        script = TableScript("live")
        list(script.feed(mode + b"SELECT 'x\\';\nCREATE TABLE `t` (x INT);\n"))
        assert list(script.created) == found


@pytest.mark.parametrize("line", [b"USE `live`;\n", b"CREATE DATABASE /*!32312 IF NOT EXISTS*/ `live`;\n"])
def test_a_script_that_goes_elsewhere_is_refused(line: bytes):
    with pytest.raises(CastoreError, match="names the database that it goes into"):
        list(TableScript("new").feed(ROWS + line))
    assert list(TableScript("new").feed(b"SELECT '\n" + line + b"';\n"))


@pytest.mark.parametrize("size", SIZES)
def test_a_dump_is_split_where_its_mark_says(size: int):
    tail = b"\n" + record_line("a1", b"views") + record_line("a1", b"1") + b"-- castore b2: 2\nCREATE ...\n" + record_line("a1", b"3")
    sections = Sections(pieces(SCRIPT + tail, size), "a1")
    assert b"".join(sections.tables()) == SCRIPT + b"\n"
    assert list(sections.records()) == [b"1", b"3"]
    with pytest.raises(CastoreError, match="incomplete"):
        list(Sections(pieces(SCRIPT + tail, size), "c3").tables())


def test_definitions_are_compared_without_what_moves():
    one = b"CREATE TABLE `t` (\n  `x` int DEFAULT nextval(`a`.`s`)\n) ENGINE=InnoDB AUTO_INCREMENT=7 COMMENT='`a`.`s`'"
    assert normal(one, "a") == b"CREATE TABLE `t` (\n  `x` int DEFAULT nextval(`s`)\n) ENGINE=InnoDB COMMENT='`a`.`s`'"
    assert unqualified(b"x `b`.`s` `a`.`t` '\\'`a`.`t`' `a.`", "a") == b"x `b`.`s` `t` '\\'`a`.`t`' `a.`"


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("select `app`.`b`.`x` AS `x` from `b`", "select `b`.`x` AS `x` from `b`"),
        ("select `app`.`b` from `app`", "select `app`.`b` from `app`"),
        ("select '`app`.`b`.`x`',`o`.`app`.`b`,`app`.`o``a`.`x`", "select '`app`.`b`.`x`',`o`.`app`.`b`,`o``a`.`x`"),
        ("select 'it\\'s `app`.`b`.`x`'", "select 'it\\'s `app`.`b`.`x`'"),
    ],
)
def test_columns_of_a_view_lose_the_name_of_their_database(text: str, wanted: str):
    assert unqualified(text.encode(), "app", parts=3).decode() == wanted


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("ERROR 4025 (23000) at line 31: CONSTRAINT `k.x` failed for `app`.`k`", "same"),
        ("ERROR 1045 (28000): Access denied for user 'u'@'localhost' (using password: YES)", "same"),
        ("ERROR 1062 (23000) at line 1: Duplicate entry 'it's' for key 'PRIMARY'", "ERROR 1062 (23000) at line 1: Duplicate entry '...' for key 'PRIMARY'"),
        ("ERROR 1366 (22007) at line 1: Incorrect integer value: 'secret", "ERROR 1366 (22007) at line 1: Incorrect integer value: '...'"),
        ("ERROR 1064 (42000) at line 1: right syntax to use near ''secret'' at line 1", "ERROR 1064 (42000) at line 1: right syntax to use near '...' at line 1"),
        ("INSERT INTO u VALUES ('secret')", None),
        ("--------------", None),
        ("' for column `app`.`b`.`x` at row 1", None),
        ("mariadb: unknown option '--x'", "same"),
    ],
)
def test_errors_of_the_client_are_shown_with_the_reason_and_without_values(line: str, expected: str | None):
    found = plain(line.encode())
    assert (found.decode() if found is not None else None) == (line if expected == "same" else expected)


def test_what_the_client_escapes_is_read_back():
    assert unescaped(rb"a\\tb\tc\nd\0e\x") == b"a\\tb\tc\nd\0e\\x"


@pytest.mark.parametrize("room", [7, 100, 10_000])
def test_a_row_that_is_longer_than_a_packet_is_reported(room: int):
    def warnings(data: bytes) -> int:
        at = 0

        def readinto(view: memoryview) -> int:
            nonlocal at
            piece = data[at : at + len(view)]
            view[: len(piece)] = piece
            at += len(piece)
            return len(piece)

        measured = Observed(readinto, 30_000)
        while measured(memoryview(bytearray(room))):
            pass
        measured(memoryview(bytearray(room)))
        return len(measured.warnings)

    row = b"x" * 20_000 + b"\n"
    assert warnings(row * 10) == 0
    assert warnings(row + row.strip() + row) == 1
    assert warnings(b"") == 0
