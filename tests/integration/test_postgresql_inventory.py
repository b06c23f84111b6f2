"""Each kind of object of PostgreSQL is in the inventory, and one that is changed or lost in a dump is found."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from castore.engines.dump_stream import read_preamble
from castore.engines.inventory import INVENTORY, differences
from castore.engines.postgresql.engine import PostgreSQL
from castore.errors import CastoreError
from castore.services.rollback import preparation
from castore.services.sources import EngineSource
from tests.support.postgres import Postgres
from tests.support.stores import Sandbox

KINDS = (Path(__file__).parents[1] / "support" / "postgres_kinds.sql").read_text()
MUTATIONS = {
    "schema app": "ALTER SCHEMA app OWNER TO postgres", "schema Odd": 'DROP SCHEMA "Odd "" \'schema" CASCADE', "extension hstore": "DROP EXTENSION hstore",
    "table app.people: options": "ALTER TABLE app.people RESET (fillfactor)", "table app.people: storage": "ALTER TABLE app.people ALTER blob SET STORAGE MAIN",
    "table app.people: default": "ALTER TABLE app.people ALTER feels DROP DEFAULT", "table app.people: statistics": "ALTER TABLE app.people ALTER name SET STATISTICS -1",
    "table app.people: replica": "ALTER TABLE app.people REPLICA IDENTITY DEFAULT", "table app.people: column right": "REVOKE SELECT (name) ON app.people FROM kinds_reader",
    "table app.cache": "ALTER TABLE app.cache SET LOGGED", "table app.cache: right": "GRANT ALL ON app.cache TO kinds_reader", "table app.child": "ALTER TABLE app.child NO INHERIT app.base",
    "table app.parts_1": "ALTER TABLE app.parts DETACH PARTITION app.parts_1", "table app.typed": "ALTER TABLE app.typed NOT OF", "table app.posts": "ALTER TABLE app.posts DISABLE ROW LEVEL SECURITY",
    "sequence app.numbers": "ALTER SEQUENCE app.numbers CACHE 1", "view app.happy": "ALTER VIEW app.happy RESET (security_barrier)", "view app.up": "DROP VIEW app.up",
    "materialized view app.counts": "REFRESH MATERIALIZED VIEW app.counts WITH NO DATA", "materialized view app.empty": "DROP MATERIALIZED VIEW app.empty",
    "index app.partial": "DROP INDEX app.partial", "index app.trgm": "ALTER INDEX app.trgm SET (fastupdate = on)", "constraint posts_author_fkey": "ALTER TABLE app.posts ALTER CONSTRAINT posts_author_fkey NOT DEFERRABLE",
    "constraint short": "ALTER TABLE app.people DROP CONSTRAINT short", "trigger shout": "ALTER TABLE app.people DISABLE TRIGGER shout", "trigger later": "DROP TRIGGER later ON app.posts",
    "rule guard": "DROP RULE guard ON app.base", "policy own": "ALTER POLICY own ON app.posts USING (true)", "statistics app.together": "DROP STATISTICS app.together",
    "function app.shout": "GRANT EXECUTE ON FUNCTION app.shout() TO PUBLIC", "function app.twice": "CREATE OR REPLACE FUNCTION app.twice(x int DEFAULT 2, VARIADIC more int[] DEFAULT '{}') RETURNS int LANGUAGE sql IMMUTABLE PARALLEL SAFE COST 5 RETURN x * 3",
    "function app.tidy": "DROP PROCEDURE app.tidy", "function app.total": "DROP AGGREGATE app.total (int)", "type app.mood": "ALTER TYPE app.mood RENAME VALUE 'sad' TO 'blue'",
    "type app.positive": "ALTER DOMAIN app.positive DROP DEFAULT", "composite type app.pair": "ALTER TYPE app.pair ADD ATTRIBUTE c int CASCADE", "type app.floats": "DROP TYPE app.floats",
    "operator app.===": "DROP OPERATOR app.=== (int, int)", "operator class": "DROP OPERATOR CLASS app.cls USING btree", "cast": "DROP CAST (int AS app.mood)",
    "conversion app.conv": "DROP CONVERSION app.conv", "collation app.case_less": "ALTER COLLATION app.case_less OWNER TO kinds_reader",
    "text search configuration app.conf": "ALTER TEXT SEARCH CONFIGURATION app.conf DROP MAPPING FOR asciiword", "text search dictionary app.dict": "ALTER TEXT SEARCH DICTIONARY app.dict (stopwords)",
    "event trigger on_ddl": "ALTER EVENT TRIGGER on_ddl ENABLE", "publication pub": "ALTER PUBLICATION pub SET (publish = 'delete')", "server far": "ALTER SERVER far OPTIONS (SET host 'z')",
    "user mapping for": "ALTER USER MAPPING FOR kinds_reader SERVER far OPTIONS (SET password 'other')", "foreign table app.remote": "ALTER FOREIGN TABLE app.remote OPTIONS (SET table_name 'u')",
    "default privileges": "ALTER DEFAULT PRIVILEGES FOR ROLE kinds_owner IN SCHEMA app REVOKE SELECT ON TABLES FROM kinds_reader", "large object 4242": "ALTER LARGE OBJECT 4242 OWNER TO kinds_owner",
    "large object lost": "SELECT lo_unlink(4242)", "comment on table column": "COMMENT ON COLUMN app.people.name IS NULL", "comment on index": "COMMENT ON INDEX app.words IS 'one line'",
    "rows of app.base": "INSERT INTO app.base VALUES (9)", "rows of app.parts_d": "DELETE FROM app.parts_d", "rows of app.cache": "TRUNCATE app.cache",
}


@pytest.fixture(scope="module")
def server() -> Iterator[Postgres]:
    with Postgres() as found:
        found.psql("CREATE ROLE kinds_owner; CREATE ROLE kinds_reader; CREATE DATABASE kinds TEMPLATE template0")
        odd = "(provider = icu, locale = 'und-u-ks-level2', deterministic = false)"
        try:
            found.psql(f"CREATE COLLATION probe {odd}")
        except AssertionError:
            found.psql(KINDS.replace(odd, "(provider = libc, locale = 'C')"), "kinds")
        else:
            found.psql(KINDS, "kinds")
        yield found


def engine(server: Postgres, name: str = "kinds") -> PostgreSQL:
    return PostgreSQL(database=name, host=server.socket_folder, user="postgres", program_path=server.programs)


@pytest.fixture(scope="module")
def recorded(server: Postgres) -> dict[str, str]:
    """The inventory of the database with every kind of object."""
    with engine(server)._live.snapshot({}) as (found, _):  # noqa: SLF001 - what the engine asks its server
        return found


@pytest.mark.parametrize("what", MUTATIONS)
def test_a_change_of_one_object_is_found(server: Postgres, recorded: dict[str, str], what: str):
    server.psql("DROP DATABASE IF EXISTS mutated; CREATE DATABASE mutated TEMPLATE kinds")
    # What a dump has lost or changed, the staged database has not.
    server.psql(MUTATIONS[what] if not what.startswith("extension") else MUTATIONS[what] + " CASCADE", "mutated")
    with engine(server, "mutated")._live.snapshot({}) as (found, _):  # noqa: SLF001 - what the engine asks its server
        named = differences(recorded, found)
    assert named


def test_every_kind_goes_back_and_is_compared(server: Postgres, tmp_path: Path, recorded: dict[str, str], monkeypatch: pytest.MonkeyPatch):
    sandbox = Sandbox(tmp_path / "sandbox")
    sandbox.snapshot("s", {"db": EngineSource("postgresql", engine(server))})
    server.psql("DROP TABLE app.posts CASCADE; DROP TYPE app.mood CASCADE; SELECT lo_unlink(4242)", "kinds")
    real = preparation.contents_of

    def lossy(line: bytes, rest: bytes):
        def contents(*arguments):
            found = real(*arguments)

            def target():
                data = b"".join(map(bytes, found.restore_dump()))
                assert INVENTORY in read_preamble([data])
                assert line in data
                yield data.replace(line, rest, 1)

            return found._replace(restore_dump=target)

        return contents

    rule = b"CREATE RULE guard AS\n    ON DELETE TO app.base DO INSTEAD NOTHING;"
    row = b"COPY app.child (x, y) FROM stdin;\n2\t3\n"
    for line, rest, named in ((rule, b"", "the rule .* is missing"), (row, row[:-4], "the rows of app.child: 0 instead of 1")):
        with monkeypatch.context() as patched:
            patched.setattr(preparation, "contents_of", lossy(line, rest))
            with pytest.raises(CastoreError, match=named):
                sandbox.rollback(1)
    sandbox.rollback(1)
    with engine(server)._live.snapshot({}) as (found, _):  # noqa: SLF001 - what the engine asks its server
        assert differences(recorded, found) == []
    assert server.psql("SELECT datname FROM pg_database WHERE datname LIKE 'castore%'") == ""
