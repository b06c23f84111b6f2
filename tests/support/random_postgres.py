"""Random PostgreSQL databases: every kind of object, hostile names, edge values; and what they hold, read independently.

Statements that the server refuses are passed over: not every random combination is valid.
"""

from __future__ import annotations

import random
import re
import subprocess

from tests.support.postgres import Postgres

NAMES = (
    "t", "T", "select", "a b", "tab\tle", 'quo"te', "it's", "dol$$lar", "semi;colon", "back\\slash", "ünï", "--comment", "/*x*/", "new\nline",
    "pg_x", "1", "x" * 63, "COPY x FROM stdin;", "\\.", "%s", "{}", "=", "a.b", "public", "🌳", "\\connect x", 'emb""ed',
)
TEXTS = (
    "", " ", "\\", "\\N", "\\.", "\n\\.\n", "\t", "'", '"', "$$", ";", "\r\n", "\x01\x7f", "ä", "🌳", "NULL", "{}", "{NULL}", "--", "x" * 5000, "%",
    "COPY t FROM stdin;\n1\n\\.\n", "\\restrict x", "\u202e\ufeff",
)
VALUES = {
    "smallint": ("-32768", "32767"), "integer": ("-2147483648", "2147483647", "0"), "bigint": ("-9223372036854775808", "9223372036854775807"),
    "numeric": ("NaN", "Infinity", "-Infinity", "1e-1000", "1" * 200 + "." + "3" * 200, "-0.00"), "numeric(10,3)": ("1234567.891", "NaN"),
    "real": ("NaN", "-0", "1e-45", "3.4028235e38", "-Infinity"), "double precision": ("NaN", "-0", "5e-324", "1.7976931348623157e308", "0.1"),
    "text": TEXTS, "varchar(5001)": TEXTS, "char(9)": ("", " x ", "ä"), '"char"': ("a", ""), "name": ("x", "it's"), "boolean": ("t", "f"),
    "bytea": ("\\x", "\\x00ff5c27", "\\x" + "00" * 5000), "date": ("infinity", "-infinity", "4713-01-01 BC", "5874897-12-31", "2000-02-29"),
    "time": ("00:00", "24:00", "23:59:59.999999"), "timetz": ("00:00+15:59", "24:00-15:59"), "timestamp": ("infinity", "4713-01-01 00:00 BC", "294276-12-31 23:59:59.999999"),
    "timestamptz": ("-infinity", "2001-02-03 04:05:06.789+05:30", "1900-01-01 00:00:00+00"), "interval": ("-1 mons +2 days -03:04:05.6", "178000000 years", "00:00", "P-1Y"),
    "uuid": ("00000000-0000-0000-0000-000000000000", "ffffffff-ffff-ffff-ffff-ffffffffffff"), "json": ('{"a": [1, null, "\\u0041"], "a": 2}', "null", "[ ]"),
    "jsonb": ('{"a": {"b": [1e100, "\\""]}}', "1e-400", '"ä"'), "xml": ("<a b='1'>ä</a>", "text"), "inet": ("::/0", "192.168.0.1/24", "::ffff:1.2.3.4"), "cidr": ("10.0.0.0/8", "::/0"),
    "macaddr": ("08:00:2b:01:02:03",), "macaddr8": ("08:00:2b:01:02:03:04:05",), "point": ("(1e-300,NaN)", "(-0,Infinity)"), "box": ("((1,2),(0,0))",),
    "path": ("[(0,0),(1,1)]", "((0,0),(1,1))"), "polygon": ("((0,0),(1,1),(2,0))",), "circle": ("<(0,0),1.5>",), "lseg": ("[(0,0),(1,1)]",), "line": ("{1,2,3}",),
    "tsvector": ("'a':1A,2 'b''c':3", ""), "tsquery": ("'a' & !'b' <-> 'c':*A", ""), "bit(5)": ("10101",), "varbit": ("", "101"), "money": ("-92233720368547758.08", "0.01"),
    "int4range": ("empty", "(,5)", "[1,)"), "tstzrange": ("[2001-01-01 00:00+00,infinity]",), "nummultirange": ("{}", "{[1,2),(3.5,)}"), "oid": ("4294967295", "0"), "pg_lsn": ("FF/FF",),
    "text[]": ("{}", '{NULL,"NULL","","a,b","\\"","\\\\"}', "[-1:0]={x,y}"), "int[][]": ("{{1,2},{3,NULL}}", "[0:1]={1,2}"), "regtype": ("integer", "text[]"), "jsonpath": ("$.a[*] ? (@ > 1)",),
}

EXTENSIONS = ("hstore", "citext", "pg_trgm", "btree_gist", "ltree", "intarray", "unaccent", "pgcrypto")


def quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def literal(text: str) -> str:
    return "E'" + text.replace("\\", "\\\\").replace("'", "''") + "'"


class RandomDatabase:
    """Statements that make a database, and others that change it."""

    def __init__(self, seed: int, database: str) -> None:
        self.random = random.Random(seed)
        self.database = database
        self._names: list[str] = []
        self.schemas: list[str] = ["public"]
        self.tables: list[tuple[str, list[str]]] = []
        """Quoted names, each with the quoted names of columns."""
        self.types: dict[str, tuple[str, ...]] = dict(VALUES)
        self.count = 0

    def name(self) -> str:
        """Return a new quoted name; an odd one sometimes."""
        self.count += 1
        odd = self.random.choice(NAMES) if self.random.random() < 0.4 else "n"
        text = odd[:50] + str(self.count) if odd in self._names or len(odd) > 50 else odd
        while len(text.encode()) > 63:
            text = text[1:]
        self._names.append(text)
        return quoted(text)

    def object(self) -> str:
        """Return a new name in some schema."""
        return f"{self.random.choice(self.schemas)}.{self.name()}"

    def value(self, kind: str) -> str:
        return "NULL" if self.random.random() < 0.15 else f"{literal(self.random.choice(self.types[kind]))}::{kind}"

    def role(self) -> str:
        return self.random.choice(("gen_a", "gen_b", "postgres", '"gen odd"'))

    def create(self) -> list[str]:
        """Return what makes the database, after CREATE DATABASE."""
        chance = self.random
        made = [f"ALTER DATABASE {self.database} OWNER TO {self.role()};", f"COMMENT ON DATABASE {self.database} IS {literal(chance.choice(TEXTS))};"]
        for _ in range(chance.randint(0, 2)):
            schema = self.name()
            made.append(f"CREATE SCHEMA {schema} AUTHORIZATION {self.role()};")
            self.schemas.append(schema)
        extensions = chance.sample(EXTENSIONS, chance.randint(0, 3))
        made.extend(f"CREATE EXTENSION {name} SCHEMA {chance.choice(self.schemas)};" for name in extensions)
        made.extend(self._type() for _ in range(chance.randint(0, 4)))
        for _ in range(chance.randint(1, 5)):
            made += self._table()
        makers = (self._index, self._view, self._function, self._trigger, self._rule, self._policy, self._sequence, self._grant, self._comment, self._large, self._misc, self._constraint)
        for _ in range(chance.randint(5, 30)):
            made += chance.choice(makers)()
        if chance.random() < 0.5:
            setting = chance.choice(("work_mem = '3MB'", "search_path = 'a b', public", "DateStyle = 'SQL, DMY'", "default_transaction_read_only = on", "my.x = 'y'", "array_nulls = off", "IntervalStyle = sql_standard"))
            made.append(f"ALTER DATABASE {self.database} SET {setting};")
        return made

    def _type(self) -> str:
        name, kind = self.object(), self.random.randrange(4)
        if kind == 0:
            labels = [text for text in dict.fromkeys(self.random.sample(TEXTS, 4)) if len(text) < 60]
            self.types[name] = tuple(labels)
            return f"CREATE TYPE {name} AS ENUM ({', '.join(map(literal, labels))});"
        if kind == 1:
            self.types[name] = ("1", "7")
            return f"CREATE DOMAIN {name} AS int DEFAULT 5 CHECK (VALUE > 0);"
        if kind == 2:
            self.types[name] = ('(1,"a,b")', "(,)")
            return f"CREATE TYPE {name} AS ({self.name()} int, {self.name()} text);"
        self.types[name] = ("empty", "[a,b)")
        return f"CREATE TYPE {name} AS RANGE (subtype = text);"

    def _table(self) -> list[str]:
        chance = self.random
        table, columns = self.object(), []
        kinds = [chance.choice(sorted(self.types)) for _ in range(chance.randint(1, 9))]
        lines = []
        for kind in kinds:
            column = self.name()
            columns.append(column)
            extra = chance.choice(("", "", "", f" DEFAULT {self.value(kind)}", " STORAGE MAIN"))
            lines.append(f"{column} {kind}{extra if 'STORAGE' not in extra else ''}")
        if chance.random() < 0.6:
            columns.append("id")
            lines.append(f"id {chance.choice(('serial', 'bigserial', 'int GENERATED ALWAYS AS IDENTITY', 'int'))} PRIMARY KEY")
        if chance.random() < 0.2:
            lines.append("twice numeric GENERATED ALWAYS AS (1 + 1) STORED")
        if self.tables and chance.random() < 0.3 and "id" in self.tables[-1][1]:
            lines.append(f"fk int REFERENCES {self.tables[-1][0]} (id) ON DELETE SET NULL DEFERRABLE")
            columns.append("fk")
        kind = chance.choice(("TABLE", "TABLE", "TABLE", "UNLOGGED TABLE"))
        made = [f"CREATE {kind} {table} ({', '.join(lines)}) WITH (fillfactor = {chance.randint(20, 100)});"]
        if chance.random() < 0.2:
            part = self.object()
            made = [f"CREATE TABLE {table} ({', '.join(line.replace(' PRIMARY KEY', '') for line in lines)}, part int) PARTITION BY LIST (part);",
                    f"CREATE TABLE {part} PARTITION OF {table} FOR VALUES IN (1, NULL);", f"CREATE TABLE {self.object()} PARTITION OF {table} DEFAULT;"]
        elif self.tables and chance.random() < 0.1:
            made.append(f"CREATE TABLE {self.object()} (more int) INHERITS ({self.tables[-1][0]});")
        self.tables.append((table, columns))
        for _ in range(chance.randint(0, 12)):
            values = [self.value(kind) for kind in kinds]
            made.append(f"INSERT INTO {table} ({', '.join(columns[: len(kinds)])}) VALUES ({', '.join(values)});")
        if chance.random() < 0.3:
            made.append(f"ALTER TABLE {table} DROP COLUMN {columns[0]};")
            self.tables[-1] = (table, columns[1:] or columns)
        made.append(f"ALTER TABLE {table} OWNER TO {self.role()};")
        return made

    def _pick(self) -> tuple[str, str]:
        table, columns = self.random.choice(self.tables)
        return table, self.random.choice(columns)

    def _index(self) -> list[str]:
        table, column = self._pick()
        method = self.random.choice(("btree", "hash", "gin", "gist", "brin", "spgist"))
        where = self.random.choice(("", f" WHERE {column} IS NOT NULL"))
        return [f"CREATE INDEX {self.name()} ON {table} USING {method} ({self.random.choice((column, f'(({column})::text)', f'md5(({column})::text)'))}){where};"]

    def _constraint(self) -> list[str]:
        table, column = self._pick()
        check = self.random.choice((f"CHECK (({column})::text <> 'x') NOT VALID", f"CHECK ({column} IS NULL OR true)", f"UNIQUE ({column})", f"EXCLUDE USING gist ({column} WITH =)"))
        return [f"ALTER TABLE {table} ADD CONSTRAINT {self.name()} {check};", f"ALTER TABLE {table} ALTER {column} SET STATISTICS 7;", f"ALTER TABLE {table} REPLICA IDENTITY FULL;"]

    def _view(self) -> list[str]:
        table, column = self._pick()
        name = self.object()
        kind = self.random.choice(("VIEW", "VIEW", "MATERIALIZED VIEW"))
        return [f"CREATE {kind} {name} AS SELECT {column} AS {self.name()}, {literal(self.random.choice(TEXTS))} AS x FROM {table} WHERE {column} IS NOT NULL;",
                f"COMMENT ON {kind} {name} IS {literal(self.random.choice(TEXTS))};", f"ALTER VIEW {name} OWNER TO {self.role()};"]

    def _function(self) -> list[str]:
        name, text = self.object(), self.random.choice(TEXTS)
        body = f"$body$ BEGIN /* {text} */ RETURN {literal(text)}; END $body$"
        kind = self.random.randrange(4)
        if kind == 0:
            return [f"CREATE FUNCTION {name}({self.name()} text DEFAULT {literal(text)}) RETURNS text LANGUAGE plpgsql STABLE SET work_mem = '1MB' AS {body};"]
        if kind == 1:
            return [f"CREATE PROCEDURE {name}(INOUT x int) LANGUAGE sql AS 'SELECT 1';", f"ALTER PROCEDURE {name} OWNER TO {self.role()};"]
        if kind == 2:
            return [f"CREATE AGGREGATE {name} (int) (sfunc = int4pl, stype = int, initcond = '0');"]
        return [f"CREATE FUNCTION {name}() RETURNS SETOF int LANGUAGE sql BEGIN ATOMIC SELECT 1; END;", f"REVOKE ALL ON FUNCTION {name} FROM PUBLIC;"]

    def _trigger(self) -> list[str]:
        table, _ = self._pick()
        function, name = self.object(), self.name()
        return [f"CREATE FUNCTION {function}() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END';",
                f"CREATE TRIGGER {name} AFTER INSERT OR DELETE ON {table} FOR EACH ROW EXECUTE FUNCTION {function}({literal(self.random.choice(TEXTS))});",
                self.random.choice(("", f"ALTER TABLE {table} DISABLE TRIGGER {name};"))]

    def _rule(self) -> list[str]:
        table, _ = self._pick()
        return [f"CREATE RULE {self.name()} AS ON UPDATE TO {table} DO ALSO NOTIFY {self.name()}, {literal(self.random.choice(TEXTS))};"]

    def _policy(self) -> list[str]:
        table, column = self._pick()
        return [f"ALTER TABLE {table} ENABLE ROW LEVEL SECURITY;", f"CREATE POLICY {self.name()} ON {table} FOR SELECT TO {self.role()} USING ({column} IS NOT NULL);"]

    def _sequence(self) -> list[str]:
        name = self.object()
        return [f"CREATE SEQUENCE {name} INCREMENT {self.random.choice((-3, 1, 7))} CACHE {self.random.randint(1, 9)};", f"SELECT nextval({literal(name)});"]

    def _grant(self) -> list[str]:
        table, column = self._pick()
        return [f"GRANT SELECT ({column}), UPDATE ON {table} TO {self.role()} WITH GRANT OPTION;", f"REVOKE ALL ON {table} FROM {self.role()};",
                f"GRANT {self.random.choice(('USAGE', 'CREATE', 'ALL'))} ON SCHEMA {self.random.choice(self.schemas)} TO {self.role()};",
                f"ALTER DEFAULT PRIVILEGES FOR ROLE {self.role()} GRANT SELECT ON TABLES TO {self.role()};", f"GRANT {self.random.choice(('TEMP', 'CREATE'))} ON DATABASE {self.database} TO {self.role()};"]

    def _comment(self) -> list[str]:
        table, column = self._pick()
        return [f"COMMENT ON COLUMN {table}.{column} IS {literal(self.random.choice(TEXTS))};", f"COMMENT ON TABLE {table} IS {literal(self.random.choice(TEXTS))};"]

    def _large(self) -> list[str]:
        number = self.random.randint(1, 10**9)
        return [f"SELECT lo_from_bytea({number}, {self.value('bytea')});", f"ALTER LARGE OBJECT {number} OWNER TO {self.role()};"]

    def _misc(self) -> list[str]:
        table, column = self._pick()
        name = self.name()
        return [self.random.choice((
            f"CREATE PUBLICATION {name} FOR TABLE {table};", f"CREATE STATISTICS {self.object()} ON ({column} IS NULL), ({column}::text) FROM {table};",
            f"CREATE EVENT TRIGGER {name} ON sql_drop EXECUTE FUNCTION suppress_redundant_updates_trigger();", f"CREATE COLLATION {self.object()} (provider = icu, locale = 'de-u-co-phonebk');",
            f"CREATE TEXT SEARCH DICTIONARY {self.object()} (template = simple);", f"CREATE OPERATOR {self.random.choice(self.schemas)}.<#> (leftarg = text, rightarg = text, function = texteq);",
            f"CREATE FOREIGN DATA WRAPPER {name} OPTIONS (a {literal(self.random.choice(TEXTS))});", f"CREATE CONVERSION {self.object()} FOR 'LATIN1' TO 'UTF8' FROM iso8859_1_to_utf8;",
            f"ALTER TABLE {table} CLUSTER ON {name};", f"ALTER TABLE {table} FORCE ROW LEVEL SECURITY;", f"CREATE OPERATOR FAMILY {self.object()} USING hash;",
        ))]

    def change(self) -> list[str]:
        """Return what changes the database at random."""
        made: list[str] = []
        for _ in range(self.random.randint(1, 8)):
            table, column = self._pick()
            made.append(self.random.choice((
                f"DROP TABLE {table} CASCADE;", f"ALTER TABLE {table} ADD COLUMN {self.name()} int DEFAULT 3;", f"DELETE FROM {table};", f"TRUNCATE {table} CASCADE;",
                f"ALTER TABLE {table} RENAME COLUMN {column} TO {self.name()};", f"DROP SCHEMA {self.random.choice(self.schemas)} CASCADE;", f"ALTER TABLE {table} OWNER TO {self.role()};",
                f"ALTER DATABASE {self.database} OWNER TO {self.role()};", f"ALTER DATABASE {self.database} CONNECTION LIMIT {self.random.randint(20, 99)};", f"ALTER DATABASE {self.database} RESET ALL;",
                f"CREATE TABLE {self.object()} (x int);", f"ALTER TABLE {table} DROP COLUMN {column} CASCADE;", "DROP EXTENSION hstore, citext CASCADE;", "SELECT lo_unlink(oid) FROM pg_largeobject_metadata;",
                f"UPDATE {table} SET {column} = NULL;", f"REVOKE ALL ON ALL TABLES IN SCHEMA {self.random.choice(self.schemas)} FROM gen_a, gen_b;", "CREATE SCHEMA IF NOT EXISTS public;", "DROP EXTENSION plpgsql CASCADE;",
            )))
        made += self._table() + self._index() + self._view()
        return made


def run(server: Postgres, database: str, statements: list[str]) -> None:
    """Run statements one by one; those that fail are passed over."""
    environment = {"PGOPTIONS": "-c default_transaction_read_only=off -c client_min_messages=error", "PATH": "/usr/bin:/bin", "PGCLIENTENCODING": "UTF8"}
    argv = [f"{server.programs}/psql", "-X", "-q", "-o", "/dev/null", "-h", server.socket_folder, "-U", "postgres", "-d", database]
    subprocess.run(argv, input="\n".join(statements).encode(), env=environment, capture_output=True, check=True)


_CATALOGUE = """
SET search_path = pg_catalog; SET DateStyle = ISO; SET extra_float_digits = 3; SET jit = off; SET array_nulls = on;
SELECT 'database', pg_get_userbyid(datdba), (SELECT array_agg(a::text ORDER BY a::text) FROM unnest(datacl) a), datconnlimit, datcollate, pg_encoding_to_char(encoding),
  shobj_description(oid, 'pg_database'), (SELECT array_agg(setconfig::text) FROM pg_db_role_setting WHERE setdatabase = d.oid) FROM pg_database d WHERE datname = current_database();
SELECT 'columns', to_jsonb(c) - 'table_catalog' - 'udt_catalog' - 'dtd_identifier' - 'domain_catalog' - 'ordinal_position' - 'character_set_catalog' FROM information_schema.columns c WHERE table_schema NOT IN ('pg_catalog', 'information_schema') ORDER BY to_jsonb(c)::text;
SELECT 'grants', table_schema, table_name, column_name, grantor, grantee, privilege_type, is_grantable FROM information_schema.column_privileges WHERE table_schema NOT IN ('pg_catalog', 'information_schema') ORDER BY 2, 3, 4, 5, 6, 7;
SELECT 'rights', table_schema, table_name, grantor, grantee, privilege_type, is_grantable FROM information_schema.table_privileges WHERE table_schema NOT IN ('pg_catalog', 'information_schema') ORDER BY 2, 3, 4, 5, 6;
SELECT 'class', nspname, relname, relkind, pg_get_userbyid(relowner), relpersistence, reloptions, relrowsecurity, relforcerowsecurity, relreplident, relispopulated FROM pg_class c JOIN pg_namespace n ON n.oid = relnamespace WHERE nspname !~ '^pg_' AND nspname <> 'information_schema' ORDER BY 2, 3;
SELECT 'index', pg_indexes.* FROM pg_indexes WHERE schemaname !~ '^pg_' ORDER BY 2, 3, 4; SELECT 'view', v.* FROM pg_views v WHERE schemaname NOT IN ('pg_catalog', 'information_schema') ORDER BY 2, 3;
SELECT 'matview', m.* FROM pg_matviews m ORDER BY 2, 3; SELECT 'policy', p.* FROM pg_policies p ORDER BY 2, 3, 4; SELECT 'rule', r.* FROM pg_rules r WHERE schemaname NOT IN ('pg_catalog', 'information_schema') ORDER BY 2, 3, 4;
SELECT 'sequence', s.* FROM pg_sequences s ORDER BY 2, 3; SELECT 'trigger', pg_get_triggerdef(oid), tgenabled FROM pg_trigger WHERE NOT tgisinternal ORDER BY 2;
SELECT 'constraint', conrelid::regclass::text, conname, contype, convalidated OR coninhcount > 0, CASE WHEN coninhcount > 0 THEN replace(pg_get_constraintdef(oid), ' NOT VALID', '') ELSE pg_get_constraintdef(oid) END FROM pg_constraint WHERE connamespace <> 'information_schema'::regnamespace AND connamespace <> 'pg_catalog'::regnamespace ORDER BY 2, 3;
SELECT 'routine', oid::regprocedure::text, pg_get_userbyid(proowner), prokind, provolatile, prosecdef, proconfig, (SELECT array_agg(a::text ORDER BY a::text) FROM unnest(proacl) a), prosrc, CASE WHEN prokind <> 'a' THEN md5(pg_get_functiondef(oid)) END
  FROM pg_proc WHERE pronamespace NOT IN ('pg_catalog'::regnamespace, 'information_schema'::regnamespace) ORDER BY 2;
SELECT 'type', format_type(oid, NULL), typtype, pg_get_userbyid(typowner), typdefault, (SELECT array_agg(enumlabel::text ORDER BY enumsortorder) FROM pg_enum WHERE enumtypid = t.oid) FROM pg_type t WHERE typnamespace NOT IN ('pg_catalog'::regnamespace, 'information_schema'::regnamespace, 'pg_toast'::regnamespace) ORDER BY 2;
SELECT 'extension', extname, extnamespace::regnamespace, extversion FROM pg_extension ORDER BY 2; SELECT 'schema', nspname, pg_get_userbyid(nspowner), (SELECT array_agg(a::text ORDER BY a::text) FROM unnest(coalesce(nspacl, acldefault('n', nspowner))) a) FROM pg_namespace WHERE nspname !~ '^pg_(toast|temp)' ORDER BY 2;
SELECT 'comment', pg_describe_object(classoid, objoid, objsubid), description FROM pg_description WHERE objoid >= 16384 ORDER BY 2; SELECT 'large', loid, pageno, data FROM pg_largeobject ORDER BY 2, 3;
SELECT 'large object', oid, pg_get_userbyid(lomowner), lomacl FROM pg_largeobject_metadata ORDER BY 2; SELECT 'default', pg_get_userbyid(defaclrole), defaclobjtype, (SELECT array_agg(a::text ORDER BY a::text) FROM unnest(defaclacl) a) FROM pg_default_acl ORDER BY 2, 3;
SELECT 'publication', p.* FROM pg_publication_tables p ORDER BY 2, 3, 4; SELECT 'event', evtname, evtevent, evtfoid::regproc FROM pg_event_trigger ORDER BY 2; SELECT 'fdw', fdwname, fdwoptions FROM pg_foreign_data_wrapper ORDER BY 2;
SELECT 'statistics', pg_get_statisticsobjdef(oid) FROM pg_statistic_ext ORDER BY 2; SELECT 'other', pg_describe_object(c, o, 0) FROM (SELECT 'pg_operator'::regclass, oid FROM pg_operator UNION ALL SELECT 'pg_collation'::regclass, oid FROM pg_collation
  UNION ALL SELECT 'pg_ts_dict'::regclass, oid FROM pg_ts_dict UNION ALL SELECT 'pg_conversion'::regclass, oid FROM pg_conversion UNION ALL SELECT 'pg_opfamily'::regclass, oid FROM pg_opfamily) x (c, o) WHERE o >= 16384 ORDER BY 2;
SELECT format('SELECT %L, t::text COLLATE "C" FROM ONLY %s t ORDER BY 2;', c.oid::regclass, c.oid::regclass) FROM pg_class c JOIN pg_namespace n ON n.oid = relnamespace
  WHERE relkind = 'r' AND nspname NOT IN ('pg_catalog', 'information_schema', 'pg_toast') ORDER BY 1 \\gexec
"""


def contents(server: Postgres, database: str) -> list[str]:
    """Return what a database holds, by its catalogue and every row, as lines."""
    environment = {"PGOPTIONS": "-c default_transaction_read_only=off", "PATH": "/usr/bin:/bin", "PGCLIENTENCODING": "UTF8"}
    argv = [f"{server.programs}/psql", "-X", "-q", "-A", "-t", "-z", "-R", "\x1e", "-v", "ON_ERROR_STOP=1", "-h", server.socket_folder, "-U", "postgres", "-d", database]
    done = subprocess.run(argv, input=_CATALOGUE.encode(), env=environment, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    return [record for record in re.split("\x1e|\n(?=[^\0\x1e]*\0)", done.stdout.decode(errors="backslashreplace")) if record.strip()]


def differing(before: list[str], after: list[str]) -> list[str]:
    """Return what is in one of two databases only."""
    return [f"- {one!r}" for one in before if one not in after] + [f"+ {one!r}" for one in after if one not in before]


ROLES = 'CREATE ROLE gen_a; CREATE ROLE gen_b LOGIN; CREATE ROLE "gen odd";'
