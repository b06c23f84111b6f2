"""Random MariaDB databases: every kind of object, hostile names, edge values; and what is in them, by the catalogue.

Statements are made without looking whether the server takes them: those that it refuses are left out. What counts is
what exists afterwards, which is read without castore's help.
"""

from __future__ import annotations

import os
import random
import re
import subprocess
from collections import Counter
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.support.mariadb import MariaDBServer

_WORDS = ["a", "select", "Größe", "it's", 'say "x"', "back`tick", "semi;colon", "-- dash", "/* c */", "# hash", "100%", "a.b", "`q`.`r`", "back\\slash", "日本", "$$", "x" * 60, "nextval(`app`.`s`)", "DELIMITER", "0x41", "ends ;", "a_b", "new"]
_MODES = ["", "ANSI_QUOTES", "NO_BACKSLASH_ESCAPES", "PIPES_AS_CONCAT,ALLOW_INVALID_DATES", "STRICT_TRANS_TABLES,NO_ZERO_DATE", "HIGH_NOT_PRECEDENCE", "IGNORE_SPACE"]
_CHARSETS = ["utf8mb4", "utf8mb3", "latin1", "ascii", "ucs2", "utf32", "cp1251", "binary", "sjis", "gbk", "big5"]
_TYPES = {
    "TINYINT": ["0", "-128", "127", "NULL"],
    "INT UNSIGNED": ["0", "4294967295"],
    "INT(7) ZEROFILL": ["0", "42"],
    "BIGINT": ["-9223372036854775808", "9223372036854775807", "NULL"],
    "DECIMAL(65,30)": ["12345678901234567890123456789012345.123456789012345678901234567891", "-0.000000000000000000000000000001"],
    "FLOAT": ["1e-30", "-1.5", "3.25e30", "0"],
    "DOUBLE": ["0.1e0+0.2e0", "1.7976931348623157e308", "2.2250738585072014e-308", "-0e0"],
    "BIT(1)": ["b'1'", "b'0'", "NULL"],
    "BIT(64)": ["18446744073709551615", "0"],
    "DATE": ["'0000-00-00'", "'9999-12-31'", "'2001-02-31'", "'2010-00-00'", "NULL"],
    "DATETIME(6)": ["'1000-01-01 00:00:00.000001'", "'0000-00-00'", "'9999-12-31 23:59:59.999999'"],
    "TIMESTAMP(3) NULL": ["'1970-01-01 00:00:01.001'", "'2038-01-19 03:14:07'", "NULL", "'2024-03-31 01:30:00'"],
    "TIME(2)": ["'-838:59:59'", "'838:59:59.99'", "'00:00:00'"],
    "YEAR": ["0", "1901", "2155"],
    "CHAR(5)": ["''", "'a  '", "'ü'", "'\\''", "NULL"],
    "VARCHAR(40)": ["''", "' x '", "'tab\\tnl\\ncr\\rz\\Znul\\0'", "'it''s \"q\" \\\\ `b`;'", "'🌳'", "_latin1 x'e4'", "'-- castore ab: {}'"],
    "TINYTEXT": ["repeat('y', 255)", "''"],
    "LONGTEXT": ["repeat('ä', 70000)", "'\n-- castore x: views\n'"],
    "JSON": ["'{\"a\": \"\\\\u00e4\\\\n\"}'", "'[1, 2.50, null]'", "NULL"],
    "BINARY(4)": ["x'00ff0a27'", "''"],
    "VARBINARY(20)": ["x''", "x'005c27220d0a1a'"],
    "LONGBLOB": ["repeat(x'00ff', 40000)", "x''", "NULL"],
    "ENUM('a''b', 'x,y', 'ü')": ["'a''b'", "3", "0"],
    "SET('a', 'b c', 'ü')": ["''", "'a,ü'", "7"],
    "GEOMETRY": ["ST_GeomFromText('POINT(1.5 -2)', 4326)", "ST_GeomFromText('GEOMETRYCOLLECTION(POINT(0 0),LINESTRING(0 0,1 1))')", "NULL"],
    "INET6": ["'::1'", "'2001:db8::'"],
    "INET4": ["'255.0.0.1'", "NULL"],
    "UUID": ["'123e4567-e89b-12d3-a456-426655440000'", "NULL"],
}


def quoted(name: str) -> str:
    return "`" + name.replace("`", "``") + "`"


def text(value: str) -> str:
    return "'" + value.replace("\\", "\\\\").replace("'", "''") + "'"


class RandomDatabase:
    """Statements for a database with a name, from a seed."""

    def __init__(self, seed: int, name: str) -> None:
        self.random = random.Random(seed)
        self.name = name
        self.tables: dict[str, list[tuple[str, str]]] = {}
        self.views: list[str] = []
        self.sequences: list[str] = []
        self.number = 0

    def any_name(self) -> str:
        self.number += 1
        return f"{self.random.choice(_WORDS)}{self.number}"[-64:].strip()

    def maybe(self, share: float) -> bool:
        return self.random.random() < share

    def create(self) -> list[str]:
        """Return the statements that fill an empty database."""
        script = [self.sequence() for _ in range(self.random.randint(0, 2))]
        for _ in range(self.random.randint(1, 5)):
            script += self.table()
        script += [self.program() for _ in range(self.random.randint(0, 9))]
        for table in list(self.tables):
            script += self.rows(table, self.random.randint(0, 6))
        return script

    def change(self) -> list[str]:
        """Return the statements of a migration."""
        script: list[str] = []
        for _ in range(self.random.randint(1, 6)):
            ways = self._migrations(self.random.choice(list(self.tables)))
            script += self.random.choice(ways)()
        return script

    def _migrations(self, table: str) -> list[Callable[[], list[str]]]:
        return [
            lambda: [f"DELETE FROM {quoted(table)} LIMIT 2"],
            lambda: self.rows(table, 2),
            lambda: [f"DROP TABLE {quoted(table)}"],
            lambda: [f"ALTER TABLE {quoted(table)} ADD COLUMN {quoted(self.any_name())} INT DEFAULT 5"],
            lambda: [f"ALTER TABLE {quoted(table)} DROP COLUMN {quoted(self.tables[table][-1][0])}"],
            lambda: [f"RENAME TABLE {quoted(table)} TO {quoted(self.any_name())}"],
            self.table,
            lambda: [self.program()],
            lambda: [self.sequence()],
            lambda: [f"ALTER DATABASE COLLATE {self.random.choice(['utf8mb4_bin', 'latin1_german2_ci'])}"],
            lambda: [f"DROP VIEW {quoted(self.random.choice(self.views or ['none']))}"],
            lambda: [f"SELECT NEXTVAL({quoted(self.random.choice(self.sequences or ['none']))})"],
        ]  # fmt: skip

    def sequence(self) -> str:
        name = self.any_name()
        self.sequences.append(name)
        more = self.random.choice(["", "START WITH -5 INCREMENT BY -3", "MAXVALUE 7 CYCLE CACHE 2", "MINVALUE 10 START WITH 12 NOCACHE"])
        return f"CREATE SEQUENCE {quoted(name)} {more}"

    def table(self) -> list[str]:
        name = self.any_name()
        engine = self.random.choice(["InnoDB"] * 6 + ["MyISAM", "Aria", "CSV"])
        columns: list[tuple[str, str]] = []
        parts = []
        key = self.maybe(0.7) and engine != "CSV"
        if key:
            columns.append(("id", "INT"))
            parts.append("id INT NOT NULL AUTO_INCREMENT")
        for _ in range(self.random.randint(1, 7)):
            # A CSV table with some texts cannot be read again by the server itself.
            kind = self.random.choice(list(_TYPES)[:8] if engine == "CSV" else list(_TYPES))
            column = self.any_name()
            columns.append((column, kind))
            parts.append(f"{quoted(column)} {kind}{self.column_options(kind, engine)}")
        if self.sequences and self.maybe(0.4):
            qualifier = self.random.choice(["", f"{quoted(self.name)}."])
            parts.append(f"{quoted(self.any_name())} BIGINT DEFAULT NEXTVAL({qualifier}{quoted(self.random.choice(self.sequences))})")
        if self.maybe(0.3) and key:
            parts.append(f"{quoted(self.any_name())} INT AS (id + 1) {self.random.choice(['VIRTUAL', 'STORED'])}")
        if self.maybe(0.2) and key:
            parts.append(f"CONSTRAINT {quoted(self.any_name())} CHECK (id >= 0 OR {text(self.random.choice(_WORDS))} <> '')")
        if key:
            parts.append("PRIMARY KEY (id)")
        for column, kind in columns:
            if self.maybe(0.15) and engine != "CSV" and not re.search("TEXT|BLOB|JSON|GEOM", kind):
                parts.append(f"{self.random.choice(['KEY', 'UNIQUE KEY', 'KEY'])} {quoted(self.any_name())} ({quoted(column)})")
        if self.tables and self.maybe(0.4) and key and engine == "InnoDB":
            other = self.random.choice([*self.tables, name, "missing"])
            constraint = f"CONSTRAINT {quoted(self.any_name())} " if self.maybe(0.5) else ""
            parts.append(f"{constraint}FOREIGN KEY (id) REFERENCES {quoted(other)} (id) {self.random.choice(['', 'ON DELETE CASCADE', 'ON UPDATE CASCADE'])}")
        options = f"ENGINE={engine} CHARACTER SET {self.random.choice(_CHARSETS)} COMMENT={text(self.random.choice(_WORDS))}"
        if engine == "InnoDB" and self.maybe(0.4):
            options += self.random.choice([" ROW_FORMAT=COMPRESSED", " ROW_FORMAT=REDUNDANT", " AUTO_INCREMENT=77", " WITH SYSTEM VERSIONING", " PARTITION BY HASH (id) PARTITIONS 3", " PAGE_COMPRESSED=1"])
        self.tables[name] = columns
        return [f"SET foreign_key_checks = 0, innodb_strict_mode = 0, sql_mode = ''; CREATE TABLE {quoted(name)} ({', '.join(parts)}) {options}"]

    def column_options(self, kind: str, engine: str) -> str:
        if engine == "CSV":
            return " NOT NULL"
        found = ""
        if re.match("CHAR|VARCHAR|TINYTEXT|LONGTEXT|ENUM", kind) and self.maybe(0.4):
            found += f" CHARACTER SET {self.random.choice(_CHARSETS[:-3])}"
        if self.maybe(0.15):
            found += " INVISIBLE"
        if self.maybe(0.2) and kind in {"VARCHAR(40)", "CHAR(5)", "LONGTEXT", "VARBINARY(20)"}:
            found += f" DEFAULT {text(self.random.choice(['', chr(39), 'x', 'a;', '(1)']))}"
        if self.maybe(0.1) and kind == "DOUBLE":
            found += " DEFAULT (rand() * 0 + 1.5)"
        if self.maybe(0.2):
            found += f" COMMENT {text(self.random.choice(_WORDS))}"
        return found

    def rows(self, table: str, number: int) -> list[str]:
        columns = self.tables[table]
        names = ", ".join(quoted(column) for column, _ in columns)
        script = []
        for _ in range(number):
            values = []
            for column, kind in columns:
                values.append(str(self.random.choice([0, self.random.randint(1, 9999)])) if (column, kind) == ("id", "INT") else self.random.choice(_TYPES[kind]))
            script.append(
                "SET sql_mode = 'NO_AUTO_VALUE_ON_ZERO,ALLOW_INVALID_DATES', foreign_key_checks = 0, time_zone = '+00:00'; "
                f"INSERT INTO {quoted(table)} ({names}) VALUES ({', '.join(values)})"
            )
        if self.maybe(0.3) and number:
            script.append(f"UPDATE {quoted(table)} SET {quoted(columns[-1][0])} = {self.random.choice(_TYPES.get(columns[-1][1], ['1']))}")
        return script

    def program(self) -> str:
        before = f"SET sql_mode = '{self.random.choice(_MODES)}'; SET NAMES {self.random.choice(['utf8mb4', 'utf8mb4', 'latin1', 'utf8mb3', 'binary'])}; "
        after = "; SET NAMES utf8mb4; SET sql_mode = ''"
        name, table = quoted(self.any_name()), self.random.choice(list(self.tables))
        qualifier = self.random.choice(["", f"{quoted(self.name)}."])
        definer = self.random.choice(["", "", "DEFINER=`missing user`@`%` "])
        comment = self.random.choice(["", "-- it's a comment;\r\n", "/* don't */ ", '# "x\n'])
        body = f"BEGIN\r\n {comment} DECLARE v VARCHAR(30) DEFAULT 'a;b $ \\\\ ''';\n SET v = concat(v, 'ü');\nEND"
        said = self.random.choice(["'c'''", "'ö\\\\'", "'it''s\\n'", "''"])
        event = self.random.choice(["INSERT", "UPDATE", "DELETE"])
        kind = self.random.choice(["view", "view", "trigger", "trigger", "function", "procedure", "event", "package"])
        if kind == "view":
            source = self.random.choice([*self.tables, *self.views])
            self.views.append(name[1:-1].replace("``", "`"))
            algorithm = self.random.choice(["", "ALGORITHM=MERGE ", "ALGORITHM=TEMPTABLE "])
            check = self.random.choice(["", "", " WITH CHECK OPTION", " WITH LOCAL CHECK OPTION"])
            what = self.random.choice(["*", f"'it''s', {quoted(source)}.*"])
            made = f"CREATE {algorithm}{definer}SQL SECURITY {self.random.choice(['DEFINER', 'INVOKER'])} VIEW {qualifier}{name} AS SELECT {what} FROM {qualifier}{quoted(source)} WHERE 1 = 1{check}"
        elif kind == "trigger":
            made = f"CREATE {definer}TRIGGER {qualifier}{name} {self.random.choice(['BEFORE', 'AFTER'])} {event} ON {qualifier}{quoted(table)} FOR EACH ROW {body}"
        elif kind == "function":
            made = f"CREATE {definer}FUNCTION {name}(x INT, `p q` TEXT) RETURNS VARCHAR(9) CHARACTER SET latin1 DETERMINISTIC COMMENT {said} {body.replace('END', 'RETURN v; END')}"
        elif kind == "procedure":
            made = f"CREATE {definer}PROCEDURE {qualifier}{name}(INOUT x DECIMAL(5,2)) SQL SECURITY INVOKER COMMENT {said} {body}"
        elif kind == "event":
            schedule = self.random.choice(["AT '2037-01-02 03:04:05' ON COMPLETION PRESERVE", "EVERY '1:2' HOUR_MINUTE STARTS '2036-01-01' ENDS '2037-12-31'", "EVERY 5 YEAR STARTS '2036-05-05'"])
            state = self.random.choice(["ENABLE", "DISABLE", "DISABLE ON SLAVE"])
            before += f"SET time_zone = '{self.random.choice(['+00:00', '-11:30', 'SYSTEM'])}'; "
            made = f"CREATE {definer}EVENT {qualifier}{name} ON SCHEDULE {schedule} {state} COMMENT {said} DO {body}"
        else:
            before = "SET sql_mode = ORACLE; "
            made = f"CREATE PACKAGE {name} COMMENT {said} AS FUNCTION f RETURN INT; END"
        return before + made + after


def run(server: MariaDBServer, database: str, script: list[str]) -> None:
    """Run statements one after the other; those that fail are left out."""
    argv = ["mariadb", "--no-defaults", f"--socket={server.socket}", "--user=root", "--batch", "--force", "--comments"]
    argv += ["--binary-mode", "--default-character-set=utf8mb4", database]
    # Several statements each, so that settings and what they are for go together.
    given = "DELIMITER ~~~\n" + "".join(f"{one}\n~~~\n" for one in script)
    subprocess.run(argv, input=given.encode(), capture_output=True, check=False, env={"PATH": os.environ["PATH"]})


_CATALOGUE = {
    "TABLES": "TABLE_NAME, TABLE_TYPE, ENGINE, ROW_FORMAT, TABLE_COLLATION, CREATE_OPTIONS, TABLE_COMMENT",
    "COLUMNS": "TABLE_NAME, ORDINAL_POSITION, COLUMN_NAME, COLUMN_DEFAULT, IS_NULLABLE, COLUMN_TYPE, COLLATION_NAME, COLUMN_KEY, EXTRA, COLUMN_COMMENT, GENERATION_EXPRESSION",
    "STATISTICS": "TABLE_NAME, INDEX_NAME, SEQ_IN_INDEX, COLUMN_NAME, NON_UNIQUE, SUB_PART, INDEX_TYPE, INDEX_COMMENT",
    "VIEWS": "TABLE_NAME, VIEW_DEFINITION, CHECK_OPTION, DEFINER, SECURITY_TYPE, CHARACTER_SET_CLIENT, COLLATION_CONNECTION, ALGORITHM",
    "PARTITIONS": "TABLE_NAME, PARTITION_NAME, PARTITION_METHOD, PARTITION_EXPRESSION, PARTITION_DESCRIPTION",
}
_ELSE = {
    "TRIGGERS": ("TRIGGER_SCHEMA", "TRIGGER_NAME, EVENT_OBJECT_TABLE, ACTION_ORDER, ACTION_TIMING, EVENT_MANIPULATION, ACTION_STATEMENT, DEFINER, SQL_MODE, CHARACTER_SET_CLIENT, COLLATION_CONNECTION, DATABASE_COLLATION"),
    "ROUTINES": ("ROUTINE_SCHEMA", "ROUTINE_TYPE, ROUTINE_NAME, DTD_IDENTIFIER, ROUTINE_DEFINITION, IS_DETERMINISTIC, SECURITY_TYPE, ROUTINE_COMMENT, DEFINER, SQL_MODE, CHARACTER_SET_CLIENT, COLLATION_CONNECTION, DATABASE_COLLATION"),
    "PARAMETERS": ("SPECIFIC_SCHEMA", "SPECIFIC_NAME, ORDINAL_POSITION, PARAMETER_MODE, PARAMETER_NAME, DTD_IDENTIFIER, COLLATION_NAME"),
    "EVENTS": ("EVENT_SCHEMA", "EVENT_NAME, DEFINER, TIME_ZONE, EVENT_DEFINITION, EXECUTE_AT, INTERVAL_VALUE, INTERVAL_FIELD, SQL_MODE, STARTS, ENDS, STATUS, ON_COMPLETION, EVENT_COMMENT, CHARACTER_SET_CLIENT, DATABASE_COLLATION"),
    "CHECK_CONSTRAINTS": ("CONSTRAINT_SCHEMA", "TABLE_NAME, CONSTRAINT_NAME, CHECK_CLAUSE"),
    "REFERENTIAL_CONSTRAINTS": ("CONSTRAINT_SCHEMA", "TABLE_NAME, CONSTRAINT_NAME, REFERENCED_TABLE_NAME, UPDATE_RULE, DELETE_RULE"),
    "KEY_COLUMN_USAGE": ("CONSTRAINT_SCHEMA", "TABLE_NAME, CONSTRAINT_NAME, COLUMN_NAME, ORDINAL_POSITION, REFERENCED_TABLE_NAME, REFERENCED_COLUMN_NAME"),
    "SCHEMATA": ("SCHEMA_NAME", "DEFAULT_COLLATION_NAME"),
}  # fmt: skip


def contents(server: MariaDBServer, database: str) -> dict[str, str]:
    """Return all that the catalogue says of a database, and every row, by what it is."""
    everything = {**{table: ("TABLE_SCHEMA", columns) for table, columns in _CATALOGUE.items()}, **_ELSE}
    script = [
        f"SELECT '{table}', {columns} FROM information_schema.{table} WHERE {schema} = '{database}'"
        for table, (schema, columns) in everything.items()
    ]
    of_database = f"WHERE TABLE_SCHEMA = '{database}'"
    catalogue, tables, columns = _answers(server, database, [
        ";\n".join(script), f"SELECT TABLE_NAME, TABLE_TYPE FROM information_schema.TABLES {of_database}",
        f"SELECT TABLE_NAME, COLUMN_NAME, DATA_TYPE FROM information_schema.COLUMNS {of_database}",
    ])  # fmt: skip
    # A sequence holds numbers only, and SHOW CREATE writes for each Aria table the checksum that it has by default.
    text = re.sub(r"(\tSEQUENCE\t\w+\t\w+\t)\w+", r"\1", catalogue)
    lines = Counter(text.replace("page_checksum=1 ", "").splitlines())
    found = {f"catalogue: {line}": f"{count} times" for line, count in lines.items()}
    kinds = {name: kind for name, kind in map(_fields, tables.splitlines()) if kind != "VIEW"}
    of = list(map(_fields, columns.splitlines()))
    texts = _answers(server, database, [f"SHOW CREATE TABLE {quoted(name)}" for name in kinds])
    rows = _answers(server, database, [_rows(name, kind, [(column, of) for table, column, of in of if table == name]) for name, kind in kinds.items()])
    for name, definition, lines_ in zip(kinds, texts, rows, strict=True):
        found[f"definition of {name}"] = definition
        found[f"rows of {name}"] = "\n".join(sorted(lines_.splitlines()))
    return found


def _fields(line: str) -> list[str]:
    return line.replace("\\\\", "\\").split("\t")


def _rows(table: str, kind: str, columns: list[tuple[str, str]]) -> str:
    """Return the query of all rows of a table, with those of its history."""
    history = " FOR SYSTEM_TIME ALL" if kind == "SYSTEM VERSIONED" else ""
    values = [
        f"CAST({quoted(column)} AS DOUBLE)" if of == "float" else f"HEX({quoted(column)})" if of not in _PLAIN else quoted(column)
        for column, of in columns
    ]
    if kind == "SYSTEM VERSIONED":
        values += ["ROW_START", "ROW_END"]
    return f"SET time_zone = '+00:00'; SELECT {', '.join(values)} FROM {quoted(table)}{history}"


_PLAIN = {"tinyint", "int", "bigint", "decimal", "double", "date", "datetime", "timestamp", "time", "year", "smallint"}


def _answers(server: MariaDBServer, database: str, queries: list[str]) -> list[str]:
    """Return what each of some queries prints, in one session."""
    argv = ["mariadb", "--no-defaults", f"--socket={server.socket}", "--user=root", "--batch", "--skip-column-names", "--default-character-set=utf8mb4", database]
    sql = "".join(f"{query};\nSELECT '{_NEXT}';\n" for query in queries)
    done = subprocess.run(argv, input=sql.encode(), capture_output=True, check=False)
    assert done.returncode == 0, f"{sql[:300]}: {done.stderr.decode(errors='replace')}"
    found = done.stdout.decode(errors="backslashreplace").split(f"{_NEXT}\n")
    assert len(found) == len(queries) + 1, sql[:300]
    return found[:-1]


_NEXT = "castore: the next query"


def differing(expected: dict[str, str], found: dict[str, str]) -> list[str]:
    """Return what is not as expected."""
    return [
        f"{name}: {expected.get(name)} became {found.get(name)}"[:1500]
        for name in sorted(expected.keys() | found.keys())
        if expected.get(name) != found.get(name) and not _only_skips(expected.get(name, ""), found.get(name, ""))
    ]


def _only_skips(expected: str, found: str) -> bool:
    """Return whether a definition differs in a higher AUTO_INCREMENT only.

    A counter that a failed INSERT has advanced is shown as it was before, until the server opens the table again: it does
    after ALTER TABLE ... DROP FOREIGN KEY, or when it starts.
    """
    before, after = (re.findall(r" AUTO_INCREMENT=(\d+)", text) for text in (expected, found))
    same = re.sub(r" AUTO_INCREMENT=\d+", "", expected) == re.sub(r" AUTO_INCREMENT=\d+", "", found)
    return same and len(before) == len(after) == 1 and int(before[0]) <= int(after[0])
