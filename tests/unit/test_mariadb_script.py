"""What MariaDB's programs write: scripts led into another database, and messages without values."""

from __future__ import annotations

import pytest

from castore.errors import CastoreError
from castore.services.engines.mariadb_script import Measured, led_into, plain, unescaped, unqualified

ALTER = b"ALTER DATABASE `live` CHARACTER SET latin1 COLLATE latin1_swedish_ci ;\n"
LED = b"ALTER DATABASE `new` CHARACTER SET latin1 COLLATE latin1_swedish_ci ;\n"
BODY = b"""DELIMITER ;;
CREATE DEFINER=`root`@`localhost` PROCEDURE `p`()
BEGIN
-- it's a comment that opens nothing
# nor does this "one
SELECT 'a string;;
ALTER DATABASE `live` CHARACTER SET latin1 COLLATE latin1_swedish_ci ;
\\' DELIMITER ;
ALTER DATABASE `live` CHARACTER SET latin1 COLLATE latin1_swedish_ci ;;
';
/* a comment
DELIMITER ;
ALTER DATABASE `live` CHARACTER SET latin1 COLLATE latin1_swedish_ci ;
*/
ALTER DATABASE `live` CHARACTER SET latin1 COLLATE latin1_swedish_ci ;
END ;;
"""
ROWS = b"""INSERT INTO `a` VALUES
(1,'ALTER DATABASE `live` CHARACTER SET latin1 COLLATE latin1_swedish_ci ;\\n'),
(2,'it\\'s; \\"odd'),
(3,0x00);
INSERT INTO `a` VALUES (4,'x');
"""
HEAD = b"""-- castore: {"charset": ["utf8mb4", "utf8mb4_bin"]}
/*M!999999\\- enable the sandbox mode */
-- Host: localhost    Database: it's
--
/*!40101 SET NAMES utf8mb4 */;
CREATE TABLE `a` (
  `x` int(11) DEFAULT NULL COMMENT 'don''t; -- "',
) ENGINE=InnoDB;
"""
EVENT = b"""DELIMITER ;
DELIMITER ;;
ALTER DATABASE `li``ve` CHARACTER SET latin1 COLLATE latin1_swedish_ci ;;
/*!50106 CREATE*/ /*!50106 EVENT `e` ON SCHEDULE EVERY 1 DAY DO SELECT "x;;
ALTER DATABASE `live` CHARACTER SET latin1 COLLATE latin1_swedish_ci ;;
" */ ;;
ALTER DATABASE `live` CHARACTER SET latin1 COLLATE latin1_swedish_ci ;;
DELIMITER ;
"""
LED_EVENT = EVENT.replace(b"ALTER DATABASE `li``ve`", b"ALTER DATABASE `new`").replace(
    b"*/ ;;\nALTER DATABASE `live`", b"*/ ;;\nALTER DATABASE `new`"
)
SCRIPT = HEAD + ROWS + ALTER + BODY + EVENT + ROWS + ALTER + b"-- Dump completed\n"
WANTED = HEAD + ROWS + LED + BODY + LED_EVENT + ROWS + LED + b"-- Dump completed\n"


@pytest.mark.parametrize("size", [1, 2, 7, 64, 100, 1 << 20])
def test_statements_that_alter_a_database_are_led_elsewhere_and_nothing_else(size: int):
    pieces = [memoryview(SCRIPT)[at : at + size] for at in range(0, len(SCRIPT), size)]
    assert b"".join(led_into("new", pieces)) == WANTED


def test_a_backslash_is_nothing_special_where_the_mode_says_so():
    script = b"/*!50003 SET sql_mode              = 'ANSI,NO_BACKSLASH_ESCAPES' */ ;\nSELECT 'x\\';\n" + ALTER
    assert b"".join(led_into("new", [script])).endswith(LED)
    script = b"/*!50003 SET sql_mode              = '' */ ;\nSELECT 'x\\';\n" + ALTER
    assert b"".join(led_into("new", [script])) == script


def test_a_name_is_quoted_and_what_has_no_last_line_end_is_whole():
    assert b"".join(led_into("n`w", [ALTER.rstrip(b"\n")])) == LED.replace(b"`new`", b"`n``w`")
    assert b"".join(led_into("new", [ROWS.rstrip(b"\n")])) == ROWS.rstrip(b"\n")
    assert list(led_into("new", [])) == []


@pytest.mark.parametrize("line", [b"USE `live`;\n", b"CREATE DATABASE /*!32312 IF NOT EXISTS*/ `live`;\n"])
def test_a_script_that_goes_elsewhere_is_refused(line: bytes):
    with pytest.raises(CastoreError, match="which database it goes into"):
        list(led_into("new", [HEAD + line]))
    quoted = b"SELECT '\n" + line + b"';\n"
    assert b"".join(led_into("new", [quoted])) == quoted


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
    assert unqualified(text, "`app`") == wanted


@pytest.mark.parametrize(
    ("line", "told"),
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
def test_of_what_the_client_says_the_reason_is_told_and_no_value(line: str, told: str | None):
    found = plain(line.encode())
    assert (found.decode() if found is not None else None) == (line if told == "same" else told)


def test_what_the_client_escapes_is_read_back():
    assert unescaped(r"a\\tb\tc\nd\0e\x") == "a\\tb\tc\nd\0e\\x"


@pytest.mark.parametrize("room", [7, 100, 10_000])
def test_a_row_that_is_longer_than_a_packet_is_told(room: int):
    def warnings(data: bytes) -> int:
        at = 0

        def readinto(view: memoryview) -> int:
            nonlocal at
            piece = data[at : at + len(view)]
            view[: len(piece)] = piece
            at += len(piece)
            return len(piece)

        measured = Measured(readinto, 30_000)
        while measured(memoryview(bytearray(room))):
            pass
        measured(memoryview(bytearray(room)))
        return len(measured.warnings)

    row = b"x" * 20_000 + b"\n"
    assert warnings(row * 10) == 0
    assert warnings(row + row.strip() + row) == 1
    assert warnings(b"") == 0
