"""What is let through to psql: never a command that psql would run."""

from __future__ import annotations

import time

import pytest

from castore.engines.postgresql.script import _checked, _Lexer, without_commands, without_pair
from castore.errors import CastoreError

COPY = b"COPY public.t (a, b) FROM stdin;\n1\t\\N\n\\\\! touch\tit's\n\\.\n"
HARMLESS = (
    COPY + b"SELECT 1;\n",
    b"INSERT INTO t VALUES ('C:\\'), ('it''s \\! x');\n",
    b"CREATE FUNCTION f() RETURNS text AS $_$ \\! touch $x$ ' $_$;\nSELECT 1;\n",
    b"CREATE FUNCTION f() RETURNS int LANGUAGE sql BEGIN ATOMIC SELECT CASE WHEN true THEN 1 END; END;\n" + COPY,
    b"/* a /* \\! */ \\! ' */ SELECT E'\\'\\! x';\n-- \\! it's\n" + COPY,
    b'CREATE TABLE "a\\b" (c text[]); SELECT c[1:2], \'r\'::"char" FROM t;\n',
    b"SELECT a$b$c FROM t; COMMENT ON TABLE t IS '\\! line\n\\! touch\n';\n",
)
HOSTILE = (
    b"\\! touch x\n",
    b"SELECT 1 \\! touch x\n",
    b"SELECT 1;\\! touch x\n",
    b"SELECT 1 \\g |touch\n",
    COPY + b"\\! touch x\n",
    b"COPY t FROM '/x'; \n\\! touch x\n\\.\n",
    b"COPY (SELECT a FROM stdin) TO STDOUT;\n\\! touch x\n\\.\n",
    b'COPY "t FROM stdin" TO \'/x\';\n\\! touch x\n\\.\n',
    b"SELECT (1; COPY t FROM stdin;\n\\! touch x\n\\.\n",
    b"CREATE FUNCTION f() BEGIN (END); COPY t FROM stdin;\n\\! touch x\n\\.\n",
    b'CREATE "x" FUNCTION f() BEGIN; COPY t FROM stdin;\n\\! touch x\n\\.\n',
    b"COPY t FROM stdin; SELECT '\n1\n\\.\n'; \\! touch x\n",
    b"-- comment\r\\! touch x\n",
    b"SELECT 'a\0' ;\n\\! touch x\n';\n",
    b"SELECT 'a\\'; \\! touch x -- ';\n",
    b"SELECT 'a\\' b'; \\! touch x\n",
    b"SELECT E'a''b\\'' \\! touch x\n",
    b"SELECT E'\x82\\' \\! touch x --';\n",
    b"SELECT 1e'\\' \\! touch x --';\n",
    b"SELECT U&'\\' \\! touch x --';\n",
    b"SELECT $1a$b$ $b$ \\! touch x $b$;\n",
    b"SELECT :LAST_ERROR_MESSAGE;\n",
    b"/* /* */ */ \\! touch x\n",
    b"SELECT 'it;s' \\! touch x",
)


def lexers(copy: bool = True) -> tuple[_Lexer, ...]:
    return _Lexer(copy=copy), _Lexer(copy=copy, escapes=True)


@pytest.mark.parametrize("script", HARMLESS)
def test_a_harmless_script_passes_unchanged_in_any_pieces(script: bytes):
    for size in (1, 7, len(script)):
        pieces = [script[at : at + size] for at in range(0, len(script), size)]
        assert b"".join(without_commands(pieces)) == script


@pytest.mark.parametrize("script", HOSTILE)
def test_a_script_with_a_command_is_refused(script: bytes):
    for size in (1, len(script)):
        pieces = [script[at : at + size] for at in range(0, len(script), size)]
        passed = b""
        with pytest.raises(CastoreError, match=r"lets no dump run commands|has a zero byte"):
            for piece in _checked(pieces, lexers()):
                passed += piece
        assert b"\\! touch x" not in passed


def test_where_psql_goes_on_after_an_error_no_copy_is_let_through():
    with pytest.raises(CastoreError, match="COPY"):
        list(_checked([COPY], lexers(copy=False)))


def test_the_pair_around_a_dump_is_dropped_and_no_other_line():
    body = b"SELECT 1;\n\\unrestrict abc\nSELECT 2;\n"
    head, tail = b"-- castore: {}\n--\n-- dump\n--\n\n", b"--\n-- complete\n--\n\n"
    dump = head + b"\\restrict abc\n\n" + body + tail + b"\\unrestrict abc\n\n"
    for size in (1, 5, 4096, len(dump)):
        pieces = [dump[at : at + size] for at in range(0, len(dump), size)]
        assert b"".join(without_pair(pieces)) == head + b"\n" + body + tail
    assert b"".join(without_pair([head + body])) == head + body
    assert b"".join(without_pair([])) == b""


def test_what_pg_dumpall_writes_passes_where_nothing_is_known_of_psql():
    script = b"\\restrict a\n\\connect -reuse-previous=on \"dbname='x'\"\n" + COPY + b"\\unrestrict a\n"
    assert b"".join(without_commands([script])) == script
    names = b"\\connect template1\n\\connect \"Upper.1\"\n\\connect -reuse-previous=on \"dbname='a \"\"b='\"\n"
    assert b"".join(without_commands([names])) == names


@pytest.mark.parametrize(
    "argument",
    [
        b"`touch x`",
        b'"host=elsewhere dbname=x"',
        b"-reuse-previous=on \"dbname='x' host='elsewhere'\"",
        b"-reuse-previous=on \"dbname='x' sslkey='/tmp/library:x'\"",
        b"-reuse-previous=on \"dbname='x\\' host=elsewhere'\"",
        b"postgresql://elsewhere/x",
        b"x user elsewhere 5432",
    ],
)
def test_a_script_leads_to_no_other_server(argument: bytes):
    with pytest.raises(CastoreError, match="lets no dump run commands"):
        list(without_commands([b"\\connect " + argument + b"\n"]))


def test_a_row_of_many_pieces_is_joined_once():
    row = [b"COPY public.t (a) FROM stdin;\n", *[b"x" * 1024] * 16384, b"\n\\.\n"]
    began = time.monotonic()
    assert b"".join(without_commands(row)) == b"".join(row)
    assert time.monotonic() - began < 20  # joined again for each piece: 134 GB are copied
