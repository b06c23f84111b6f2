"""Reasons why a PostgreSQL database cannot be dumped or rolled back, with statements that remove them."""

from __future__ import annotations

import contextlib
import os
import re
from typing import TYPE_CHECKING, Final

from castore.engines.postgresql.session import refuse_options
from castore.errors import CastoreError
from castore.model.counting import count as counted
from castore.process.runners import output_of

if TYPE_CHECKING:
    from castore.engines.postgresql.database import Database

_NOT_SUPER: Final = "NOT (SELECT rolsuper FROM pg_roles WHERE rolname = current_user)"
_LIVE: Final = "pg_database d WHERE d.datname = :'live'"

BLOCKERS: Final = f"""
SELECT format('the subscription %1$s of the database would go on in the copy that a rollback replaces: in the database, '
  'ALTER SUBSCRIPTION %1$I DISABLE; ALTER SUBSCRIPTION %1$I SET (slot_name = NONE); DROP SUBSCRIPTION %1$I; (its slot on '
  'the publisher stays); create it again after the rollback', s.subname)
FROM pg_subscription s WHERE s.subdbid = (SELECT d.oid FROM {_LIVE})
UNION ALL SELECT format('a rollback would drop the logical replication slot %1$s of the database: end what uses it, then '
  'SELECT pg_drop_replication_slot(%1$L);', slot_name)
FROM pg_replication_slots WHERE database = :'live' AND NOT temporary
UNION ALL SELECT format('a prepared transaction holds the database: COMMIT PREPARED %1$L; or ROLLBACK PREPARED %1$L;', gid)
FROM pg_prepared_xacts WHERE database = :'live'
UNION ALL SELECT 'the server is a standby, which cannot be written to' WHERE pg_is_in_recovery()
UNION ALL SELECT format('the database does not allow connections: ALTER DATABASE %I ALLOW_CONNECTIONS true;', d.datname)
FROM {_LIVE} AND NOT d.datallowconn;
"""
"""Objects that would be lost, or that prevent a rename. Queried in another database than the live one."""

RIGHTS: Final = f"""
SELECT format('the role %1$s may not create databases: ALTER ROLE %1$I CREATEDB;', rolname) FROM pg_roles
WHERE rolname = current_user AND NOT rolsuper AND NOT rolcreatedb
UNION ALL SELECT format('the role %s does not own the database, so cannot rename it: GRANT %I TO %I;', current_user,
  pg_get_userbyid(d.datdba), current_user)
FROM {_LIVE} AND {_NOT_SUPER} AND NOT pg_has_role(d.datdba, 'USAGE')
UNION ALL SELECT DISTINCT format('the role %s may not make objects belong to %s: GRANT %I TO %I;', current_user,
  o.rolname, o.rolname, current_user)
FROM pg_shdepend s JOIN pg_roles o ON o.oid = s.refobjid AND s.refclassid = 'pg_authid'::regclass
WHERE s.deptype = 'o' AND s.dbid = (SELECT d.oid FROM {_LIVE}) AND {_NOT_SUPER} AND NOT pg_has_role(o.oid, 'MEMBER')
UNION ALL SELECT DISTINCT format('the role %s may not end the connections of %s: GRANT pg_signal_backend TO %I;', current_user,
  r.rolname, current_user)
FROM pg_stat_activity a JOIN pg_roles r ON r.oid = a.usesysid WHERE a.datname = :'live' AND NOT r.rolsuper AND {_NOT_SUPER}
  AND NOT pg_has_role(r.oid, 'USAGE') AND NOT pg_has_role('pg_signal_backend', 'USAGE')
UNION ALL SELECT format('settings of the role %s in the database can be set again by a superuser only: ALTER ROLE %I '
  'SUPERUSER;', r.rolname, current_user)
FROM pg_db_role_setting s JOIN pg_roles r ON r.oid = s.setrole
WHERE s.setdatabase = (SELECT d.oid FROM {_LIVE}) AND r.rolname <> current_user AND {_NOT_SUPER}
  AND NOT (SELECT rolcreaterole FROM pg_roles WHERE rolname = current_user)
UNION ALL SELECT format('session_replication_role is %s in sessions of the role %s, so a restored database could differ: '
  'ALTER ROLE %2$I RESET session_replication_role;', setting, current_user)
FROM pg_settings WHERE name = 'session_replication_role' AND setting <> 'origin' AND {_NOT_SUPER};
"""
"""Rights that a rollback needs and the role lacks. Queried in another database than the live one."""

INSIDE: Final = f"""
SELECT format('only a superuser can create %s again: ALTER ROLE %I SUPERUSER;', x.what, current_user) FROM (
  SELECT concat('the extension ', e.extname) AS what FROM pg_extension e
  WHERE EXISTS (SELECT FROM pg_available_extension_versions v WHERE v.name = e.extname AND v.version = e.extversion
      AND v.superuser AND NOT v.trusted) AND e.oid >= 16384
  UNION ALL SELECT concat('the event trigger ', evtname) FROM pg_event_trigger t WHERE NOT EXISTS (SELECT FROM pg_depend e
    WHERE e.deptype = 'e' AND e.classid = 'pg_event_trigger'::regclass AND e.objid = t.oid)
  UNION ALL SELECT concat('the function ', p.oid::regprocedure, ', which is in C') FROM pg_proc p
  JOIN pg_language l ON l.oid = p.prolang WHERE p.oid >= 16384 AND l.lanname IN ('c', 'internal')
    AND NOT EXISTS (SELECT FROM pg_depend e WHERE e.deptype IN ('e', 'i') AND e.classid = 'pg_proc'::regclass
      AND e.objid = p.oid)
) x WHERE {_NOT_SUPER}
UNION ALL SELECT DISTINCT format('only a superuser can make objects of the schema %s belong to %s, who does not own the schema: '
  'ALTER ROLE %I SUPERUSER;', n.nspname, pg_get_userbyid(x.owner), current_user) FROM (
  SELECT relnamespace AS schema, relowner AS owner FROM pg_class WHERE oid >= 16384 AND relkind IN ('r', 'p', 'v', 'm', 'f', 'S', 'c')
  UNION SELECT pronamespace, proowner FROM pg_proc WHERE oid >= 16384 UNION SELECT typnamespace, typowner FROM pg_type WHERE oid >= 16384
) x JOIN pg_namespace n ON n.oid = x.schema WHERE n.nspname !~ '^pg_(toast|temp)' AND {_NOT_SUPER}
  AND NOT pg_has_role(x.owner, n.nspowner, 'USAGE')
UNION ALL SELECT format('the server has no files of the extension %s any more: install its package', e.extname)
FROM pg_extension e WHERE NOT EXISTS (SELECT FROM pg_available_extensions a WHERE a.name = e.extname);
"""
"""Objects of the live database that the role could not create again. Queried in the live database."""

READABLE: Final = f"""
SELECT format('%s is on, so rows of damaged pages would be missing without an error: ALTER SYSTEM SET %s = off; (or where it '
  'is set)', name, name) FROM pg_settings WHERE name = 'zero_damaged_pages' AND setting = 'on'
UNION ALL SELECT format('the role %1$s cannot read %2$s: GRANT SELECT ON %2$s TO %1$I;', current_user, c.oid::regclass)
FROM pg_class c WHERE c.relkind IN ('r', 'p', 'S') AND c.oid >= 16384 AND NOT has_table_privilege(c.oid, 'SELECT')
  AND c.relnamespace NOT IN (SELECT oid FROM pg_namespace WHERE nspname ~ '^pg_(toast|temp)')
UNION ALL SELECT format('row-level security hides rows of %s from the role %s: ALTER ROLE %2$I BYPASSRLS;',
  c.oid::regclass, current_user)
FROM pg_class c WHERE c.relrowsecurity AND c.oid >= 16384 AND {_NOT_SUPER}
  AND NOT (SELECT rolbypassrls FROM pg_roles WHERE rolname = current_user)
  AND (c.relforcerowsecurity OR NOT pg_has_role(c.relowner, 'USAGE'))
UNION ALL SELECT format('the role %1$s cannot read the large object %2$s: GRANT SELECT ON LARGE OBJECT %2$s TO %1$I;',
  current_user, m.oid)
FROM pg_largeobject_metadata m WHERE {_NOT_SUPER} AND NOT pg_has_role(m.lomowner, 'USAGE')
  AND NOT EXISTS (SELECT FROM aclexplode(m.lomacl) a WHERE a.privilege_type = 'SELECT'
    AND (a.grantee = 0 OR pg_has_role(a.grantee, 'USAGE')));
"""
"""Objects that a dump could not read. Queried in the live database."""

SPACE: Final = """
SELECT pg_database_size(:'live'), s.setting FROM (SELECT current_setting('data_directory', true) AS setting
  WHERE pg_has_role('pg_read_all_settings', 'USAGE')) s WHERE EXISTS (SELECT FROM pg_database WHERE datname = :'live');
"""
"""The size of the live database in bytes, and where the server keeps its files."""

SUBSCRIPTIONS: Final = """
SELECT format('ALTER SUBSCRIPTION %1$I DISABLE; ALTER SUBSCRIPTION %1$I SET (slot_name = NONE); DROP SUBSCRIPTION %1$I;',
  subname) FROM pg_subscription WHERE subdbid = (SELECT oid FROM pg_database WHERE datname = current_database());
"""
"""Statements that drop the subscriptions of a database that a rollback created, without their slots."""


def refuse(database: str, what: str, problems: list[str]) -> None:
    """Raise CastoreError if a database has problems. what: the operation that they prevent."""
    if problems:
        raise CastoreError(f"the database {database} cannot be {what}: {'; '.join(problems)}")


def check(live: Database) -> None:
    """Raise CastoreError if the database could not be dumped, or a rollback would be refused."""
    program = live.client.program("pg_dump")
    own = re.search(rb"\) (\d+)", output_of([program, "--version"], **live.client.process(None)))
    server = live.client.version() // 10000
    if own is not None and int(own[1]) < server:
        raise CastoreError(
            f"{program} is of PostgreSQL {int(own[1])} and cannot dump from version {server}: "
            f"install the clients of PostgreSQL {server}, or name their directory as `program-path`"
        )
    refuse(live.name, "dumped", live.client.query(READABLE, database=live.name))
    ready(live)


def ready(live: Database) -> None:
    """Raise CastoreError if a rollback would be refused: for options, rights, replication, space."""
    refuse_options(live.options)
    ask, names = live.client.ask, {"live": live.name}
    problems = [*ask(BLOCKERS, names), *ask(RIGHTS, names)]
    if live.exists() and not any("ALLOW_CONNECTIONS" in problem for problem in problems):
        problems += live.client.query(INSIDE, database=live.name)
    refuse(live.name, "rolled back", [*problems, *_lacking_space(live)])


def _lacking_space(live: Database) -> list[str]:
    """Return a problem if the file system of a server on this machine is too small for a second database."""
    client = live.client
    if client.host is not None and not client.host.startswith("/"):
        return []
    for record in client.ask(SPACE, {"live": live.name}):
        size, _, folder = record.partition("|")
        with contextlib.suppress(OSError):
            info = os.statvfs(folder)
            free = info.f_bavail * info.f_frsize
            if free < int(size):
                needed = f"a rollback needs {counted(int(size), 'byte')} for a second database"
                return [f"{needed}, and {folder} has {counted(free, 'byte')} free: free space there"]
    return []
