"""The content of a PostgreSQL database, from its catalogue: to check dumps and what they restore to.

A fingerprint covers what pg_dump restores: owner, rights, options and definition. Values that change by
themselves, such as the last value of a sequence, are not part of it.
"""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable

    from castore.engines.inventory import Inventory

_MOST_BYTES: Final = 4 << 20
"""The largest inventory in the first line of a dump; a larger one is condensed to a digest per kind."""

# Extensions create their own objects, and the server creates the system's.
_OURS: Final = """NOT EXISTS (SELECT FROM pg_depend e WHERE e.deptype = 'e' AND e.classid = '{0}'::regclass
  AND e.objid = {1}.oid) AND {1}.oid >= 16384"""
_SCHEMAS: Final = """{0} NOT IN (SELECT oid FROM pg_namespace WHERE nspname IN ('pg_catalog', 'information_schema')
  OR nspname ~ '^pg_(toast|temp)')"""


def _acl(column: str, kind: str, owner: str) -> str:
    default = f"acldefault('{kind}', {owner})"
    return f"ARRAY(SELECT a::text FROM unnest(coalesce({column}, {default})) a ORDER BY 1)"


def _owner(column: str) -> str:
    return f"pg_get_userbyid({column})"


def _select(kind: str, name: str, values: str, tail: str) -> str:
    """Return SQL that gives one row per object: its kind and name, and a fingerprint of values."""
    kind = kind if "CASE" in kind else f"'{kind}'"
    return f"SELECT concat({kind}, ' ', {name}), left(md5(ROW({values})::text), 16) FROM {tail}"


def _plain(kind: str, catalogue: str, prefix: str, values: str, acl: str = "", where: str = "true") -> str:
    """Return SQL for a catalogue whose objects have an owner, and a name from pg_identify_object."""
    name = f"(pg_identify_object('{catalogue}'::regclass, x.oid, 0)).identity"
    rights = f", {_acl(f'x.{prefix}acl', acl, f'x.{prefix}owner')}" if acl else ""
    owner = f", {_owner(f'x.{prefix}owner')}" if prefix else ""
    return _select(kind, name, f"{values}{owner}{rights}", f"{catalogue} x WHERE {where} AND {_OURS.format(catalogue, 'x')}")


_COLUMNS: Final = f"""ARRAY(SELECT ROW(a.attname, format_type(a.atttypid, a.atttypmod), a.attnotnull,
    pg_get_expr(d.adbin, d.adrelid), a.attidentity, a.attgenerated, a.attstorage,
    nullif(a.attcollation, t.typcollation)::regcollation, ARRAY(SELECT unnest(a.attoptions) ORDER BY 1),
    ARRAY(SELECT unnest(a.attfdwoptions) ORDER BY 1),
    nullif(a.attstattarget, -1), to_jsonb(a)->>'attcompression', {_acl("a.attacl", "c", "c.relowner")})::text
  FROM pg_attribute a JOIN pg_type t ON t.oid = a.atttypid
  LEFT JOIN pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
  WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped ORDER BY a.attname)"""
_KIND: Final = """CASE c.relkind WHEN 'v' THEN 'view' WHEN 'm' THEN 'materialized view' WHEN 'f' THEN
  'foreign table' WHEN 'S' THEN 'sequence' WHEN 'c' THEN 'composite type' ELSE 'table' END"""
_REGPROC: Final = "(pg_identify_object('pg_proc'::regclass, {0}, 0)).identity"
_RELATION: Final = "(pg_identify_object('pg_class'::regclass, {0}, 0)).identity"
_TYPE: Final = "format_type({0}, NULL)"

OBJECTS: Final = " UNION ALL ".join((
    _select("schema", "x.nspname", f"{_owner('x.nspowner')}, {_acl('x.nspacl', 'n', 'x.nspowner')}",
            f"""pg_namespace x WHERE x.nspname = 'public' OR x.nspname !~ '^pg_' AND {_OURS.format("pg_namespace", "x")}"""),
    _select(_KIND, _RELATION.format("c.oid"), f"""c.relkind, {_owner("c.relowner")},
      ARRAY(SELECT unnest(c.reloptions) ORDER BY 1), c.relpersistence, c.relreplident, c.relrowsecurity,
      c.relforcerowsecurity, (SELECT spcname FROM pg_tablespace WHERE oid = c.reltablespace),
      (SELECT amname FROM pg_am WHERE oid = c.relam), c.relispopulated, pg_get_partkeydef(c.oid),
      pg_get_expr(c.relpartbound, c.oid), CASE WHEN c.reloftype <> 0 THEN format_type(c.reloftype, NULL) END,
      CASE WHEN c.relkind IN ('v', 'm') THEN pg_get_viewdef(c.oid) END,
      (SELECT ROW(format_type(seqtypid, NULL), seqstart, seqincrement, seqmax, seqmin, seqcache, seqcycle)
        FROM pg_sequence WHERE seqrelid = c.oid),
      (SELECT ROW(s.srvname, ARRAY(SELECT unnest(f.ftoptions) ORDER BY 1)) FROM pg_foreign_table f JOIN pg_foreign_server s ON s.oid = f.ftserver
        WHERE f.ftrelid = c.oid),
      ARRAY(SELECT inhparent::regclass::text FROM pg_inherits WHERE inhrelid = c.oid ORDER BY inhseqno),
      CASE WHEN c.relkind = 'S' THEN {_acl("c.relacl", "s", "c.relowner")}
        ELSE {_acl("c.relacl", "r", "c.relowner")} END, {_COLUMNS}""",
            f"""pg_class c WHERE c.relkind IN ('r', 'p', 'v', 'm', 'f', 'S', 'c')
      AND {_SCHEMAS.format("c.relnamespace")} AND {_OURS.format("pg_class", "c")}"""),
    _select("index", _RELATION.format("c.oid"), """pg_get_indexdef(c.oid), i.indisclustered, i.indisreplident,
      ARRAY(SELECT unnest(c.reloptions) ORDER BY 1), (SELECT spcname FROM pg_tablespace WHERE oid = c.reltablespace),
      ARRAY(SELECT ROW(attnum, attstattarget)::text FROM pg_attribute WHERE attrelid = c.oid AND attstattarget >= 0
        ORDER BY attnum)""",
            f"""pg_index i JOIN pg_class c ON c.oid = i.indexrelid JOIN pg_class t ON t.oid = i.indrelid
      WHERE (i.indisvalid OR t.relkind = 'p') AND {_SCHEMAS.format("c.relnamespace")} AND {_OURS.format("pg_class", "t")}"""),
    _select("constraint", "(pg_identify_object('pg_constraint'::regclass, c.oid, 0)).identity",
            # Whether an inherited constraint was validated depends on which table was created first.
            """CASE WHEN c.coninhcount > 0 THEN replace(pg_get_constraintdef(c.oid), ' NOT VALID', '')
      ELSE pg_get_constraintdef(c.oid) END, c.convalidated OR c.coninhcount > 0, c.condeferrable, c.condeferred,
      c.connoinherit""",
            f"""pg_constraint c WHERE c.contype <> 'n' AND c.contype <> 't' AND (c.contype <> 'f' OR c.conparentid = 0)
      AND {_SCHEMAS.format("c.connamespace")}
      AND NOT EXISTS (SELECT FROM pg_depend e WHERE e.deptype = 'e' AND e.objid IN (c.conrelid, c.contypid))"""),
    _select("trigger", "(pg_identify_object('pg_trigger'::regclass, t.oid, 0)).identity",
            "pg_get_triggerdef(t.oid), t.tgenabled",
            f"""pg_trigger t WHERE NOT t.tgisinternal AND t.tgparentid = 0 AND {_OURS.format("pg_trigger", "t")}"""),
    _select("rule", "(pg_identify_object('pg_rewrite'::regclass, r.oid, 0)).identity",
            "pg_get_ruledef(r.oid), r.ev_enabled",
            f"""pg_rewrite r JOIN pg_class c ON c.oid = r.ev_class WHERE r.rulename <> '_RETURN'
      AND {_OURS.format("pg_class", "c")} AND {_OURS.format("pg_rewrite", "r")}"""),
    _select("policy", "(pg_identify_object('pg_policy'::regclass, p.oid, 0)).identity",
            """p.polcmd, p.polpermissive, ARRAY(SELECT coalesce(r.rolname, 'public') FROM unnest(p.polroles) o
      LEFT JOIN pg_roles r ON r.oid = o ORDER BY 1), pg_get_expr(p.polqual, p.polrelid),
      pg_get_expr(p.polwithcheck, p.polrelid)""",
            f"""pg_policy p WHERE {_OURS.format("pg_policy", "p")}"""),
    _plain("statistics", "pg_statistic_ext", "stx", "pg_get_statisticsobjdef(x.oid)"),
    _select("function", _REGPROC.format("p.oid"), f"""p.prokind, {_owner("p.proowner")}, {_acl("p.proacl", "f", "p.proowner")},
      CASE WHEN p.prokind <> 'a' THEN pg_get_functiondef(p.oid) END,
      (SELECT ROW(a.aggkind, a.aggnumdirectargs, a.aggtransfn, a.aggfinalfn, a.aggcombinefn, a.aggserialfn,
        a.aggdeserialfn, a.aggmtransfn, a.aggminvtransfn, a.aggmfinalfn, a.aggfinalextra, a.aggfinalmodify,
        a.aggsortop::regoperator, format_type(a.aggtranstype, NULL), a.agginitval, a.aggminitval, p.proparallel)
        FROM pg_aggregate a WHERE a.aggfnoid = p.oid)""",
            f"""pg_proc p WHERE {_SCHEMAS.format("p.pronamespace")} AND {_OURS.format("pg_proc", "p")}
      AND NOT EXISTS (SELECT FROM pg_depend d WHERE d.classid = 'pg_proc'::regclass AND d.objid = p.oid
        AND d.deptype = 'i')"""),
    _select("type", _TYPE.format("t.oid"), f"""t.typtype, {_owner("t.typowner")}, {_acl("t.typacl", "T", "t.typowner")},
      t.typnotnull, t.typdefault, CASE WHEN t.typbasetype <> 0 THEN format_type(t.typbasetype, t.typtypmod) END,
      CASE WHEN t.typtype = 'd' THEN t.typcollation::regcollation END,
      ARRAY(SELECT enumlabel::text FROM pg_enum WHERE enumtypid = t.oid ORDER BY enumsortorder),
      (SELECT ROW(format_type(rngsubtype, NULL), rngcollation::regcollation, rngcanonical, rngsubdiff)
        FROM pg_range WHERE rngtypid = t.oid), t.typinput, t.typoutput, t.typlen, t.typalign, t.typstorage""",
            f"""pg_type t LEFT JOIN pg_class c ON c.oid = t.typrelid WHERE {_SCHEMAS.format("t.typnamespace")}
      AND (t.typrelid = 0 OR c.relkind = 'c') AND t.typelem = 0 AND t.typtype <> 'm' AND {_OURS.format("pg_type", "t")}"""),
    _plain("operator", "pg_operator", "opr", """x.oprcode, x.oprcanhash, x.oprcanmerge, x.oprrest, x.oprjoin,
      x.oprcom::regoperator, x.oprnegate::regoperator"""),
    _plain("operator class", "pg_opclass", "opc", """x.opcdefault, format_type(x.opcintype, NULL),
      format_type(x.opckeytype, NULL), (pg_identify_object('pg_opfamily'::regclass, x.opcfamily, 0)).identity"""),
    _plain("operator family", "pg_opfamily", "opf", """
      ARRAY(SELECT ROW(amopstrategy, amoppurpose, amopopr::regoperator)::text FROM pg_amop WHERE amopfamily = x.oid
        ORDER BY 1), ARRAY(SELECT ROW(amprocnum, amproc::regprocedure)::text FROM pg_amproc WHERE amprocfamily = x.oid
        ORDER BY 1)"""),
    _plain("cast", "pg_cast", "", f"{_REGPROC.format('x.castfunc')}, x.castcontext, x.castmethod"),
    _plain("conversion", "pg_conversion", "con", "x.conproc, x.condefault, x.conforencoding, x.contoencoding"),
    _plain("collation", "pg_collation", "coll", """to_jsonb(x) - '{oid,collversion,collnamespace,collowner}'::text[]"""),
    _plain("text search configuration", "pg_ts_config", "cfg", """
      ARRAY(SELECT ROW(maptokentype, mapseqno, mapdict::regdictionary)::text FROM pg_ts_config_map
        WHERE mapcfg = x.oid ORDER BY maptokentype, mapseqno),
      (SELECT prsname FROM pg_ts_parser WHERE oid = x.cfgparser)"""),
    _plain("text search dictionary", "pg_ts_dict", "dict", """x.dictinitoption,
      (SELECT tmplname FROM pg_ts_template WHERE oid = x.dicttemplate)"""),
    _plain("text search parser", "pg_ts_parser", "", "x.prsstart, x.prstoken, x.prsend, x.prsheadline, x.prslextype"),
    _plain("text search template", "pg_ts_template", "", "x.tmplinit, x.tmpllexize"),
    _plain("language", "pg_language", "lan", "x.lanpltrusted, x.lanplcallfoid::regproc", "l"),
    _plain("access method", "pg_am", "", "x.amhandler, x.amtype"),
    _plain("transform", "pg_transform", "", "x.trffromsql, x.trftosql"),
    _plain("event trigger", "pg_event_trigger", "evt", "x.evtevent, x.evtfoid::regproc, x.evtenabled, x.evttags"),
    _plain("publication", "pg_publication", "pub", """x.puballtables, x.pubinsert, x.pubupdate, x.pubdelete,
      x.pubtruncate, x.pubviaroot, ARRAY(SELECT ROW(schemaname, tablename,
        ARRAY(SELECT jsonb_array_elements_text(CASE jsonb_typeof(to_jsonb(t)->'attnames') WHEN 'array'
        THEN to_jsonb(t)->'attnames' ELSE '[]' END) ORDER BY 1),
        to_jsonb(t)->>'rowfilter')::text FROM pg_publication_tables t WHERE t.pubname = x.pubname ORDER BY 1)"""),
    _plain("foreign-data wrapper", "pg_foreign_data_wrapper", "fdw",
           "x.fdwhandler::regproc, x.fdwvalidator::regproc, ARRAY(SELECT unnest(x.fdwoptions) ORDER BY 1)", "F"),
    _plain("server", "pg_foreign_server", "srv", "x.srvtype, x.srvversion, ARRAY(SELECT unnest(x.srvoptions) ORDER BY 1)", "S"),
    _select("user mapping", "concat(m.usename, ' on ', m.srvname)", "ARRAY(SELECT unnest(m.umoptions) ORDER BY 1)",
            "pg_user_mappings m"),
    _select("extension", "e.extname", "n.nspname",
            "pg_extension e JOIN pg_namespace n ON n.oid = e.extnamespace"),
    _select("default privileges", "concat_ws(' ', d.defaclrole::regrole, n.nspname, d.defaclobjtype::text)",
            "ARRAY(SELECT a::text FROM unnest(d.defaclacl) a ORDER BY 1)",
            "pg_default_acl d LEFT JOIN pg_namespace n ON n.oid = d.defaclnamespace"),
    _select("large object", "m.oid", f"{_owner('m.lomowner')}, {_acl('m.lomacl', 'L', 'm.lomowner')}",
            "pg_largeobject_metadata m"),
    _select("comment on", """concat((pg_identify_object(d.classoid, d.objoid, d.objsubid)).type, ' ',
      (pg_identify_object(d.classoid, d.objoid, d.objsubid)).identity)""", "d.description",
            """pg_description d WHERE d.objoid >= 16384 AND NOT EXISTS (SELECT FROM pg_depend e WHERE e.deptype = 'e'
      AND e.classid = d.classoid AND e.objid = d.objoid)"""),
    _select("security label on", """concat((pg_identify_object(d.classoid, d.objoid, d.objsubid)).identity, ' by ',
      d.provider)""", "d.label", "pg_seclabel d"),
)) + ";"
"""Gives one row per object: "KIND NAME", and a fingerprint. Run it with the search path pg_catalog."""

EXPORT: Final = "SELECT 'castore:snapshot', pg_export_snapshot();"
_MEMBER: Final = "EXISTS (SELECT FROM pg_depend e WHERE e.deptype = 'e' AND e.classid = 'pg_class'::regclass AND e.objid = c.oid)"
_CONFIGURED: Final = "EXISTS (SELECT FROM pg_extension e, unnest(e.extconfig) t WHERE t = c.oid)"
ROWS: Final = f"""
SELECT format('SELECT %L, count(*) FROM ONLY %s;', concat('rows of ', {_RELATION.format("c.oid")}), c.oid::regclass)
FROM pg_class c WHERE c.relkind = 'r' AND {_SCHEMAS.format("c.relnamespace")} AND c.oid >= 16384 AND NOT {_MEMBER}
ORDER BY c.oid \\gexec
"""
"""For psql: gives one row per table, with its number of rows."""
ORDERS: Final = f"""
SELECT concat('castore:order ', {_RELATION.format("c.oid")}), (SELECT string_agg(quote_ident(attname), ', ' ORDER BY attnum)
  FROM pg_attribute WHERE attrelid = c.oid AND attnum > 0 AND NOT attisdropped)
FROM pg_class c WHERE c.relkind = 'r' AND NOT c.relispartition AND EXISTS (SELECT FROM pg_inherits WHERE inhrelid = c.oid);
"""
"""Gives the columns of each table that inherits: pg_dump writes those of its parents first."""
VIEWS: Final = f"""
SELECT format('SELECT %L, count(*) FROM %s;', concat('castore:view ', {_RELATION.format("c.oid")}), c.oid::regclass)
FROM pg_class c WHERE c.relkind = 'm' AND c.relispopulated AND NOT {_MEMBER} ORDER BY c.oid \\gexec
"""
"""For psql: gives one row per materialized view, with its number of rows. A restore fills it again."""
EXTENSIONS: Final = "SELECT concat('castore:extension ', extname), extversion FROM pg_extension;"
LEFT_OUT: Final = f"""
SELECT concat('castore:missing index ', {_RELATION.format("c.oid")}),
  concat('it is invalid, and pg_dump leaves it out: REINDEX INDEX ', c.oid::regclass, ', or drop it')
FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid JOIN pg_class t ON t.oid = i.indrelid
WHERE NOT i.indisvalid AND t.relkind <> 'p' AND {_SCHEMAS.format("c.relnamespace")};
SELECT concat('castore:missing rows of the materialized view ', {_RELATION.format("c.oid")}),
  format('a rollback is refused, because the owner cannot read %1$s to fill the view again: GRANT SELECT ON %1$s TO %2$I',
    t.oid::regclass, pg_get_userbyid(c.relowner))
FROM pg_class c JOIN pg_rewrite r ON r.ev_class = c.oid JOIN pg_depend d ON d.classid = 'pg_rewrite'::regclass
  AND d.objid = r.oid AND d.refclassid = 'pg_class'::regclass JOIN pg_class t ON t.oid = d.refobjid AND t.oid <> c.oid
WHERE c.relkind = 'm' AND c.relispopulated AND t.relkind IN ('r', 'p', 'v', 'm', 'f')
  AND NOT has_any_column_privilege(c.relowner, t.oid, 'SELECT');
SELECT concat('castore:missing subscription ', subname), 'only a superuser can dump it' FROM pg_subscription
WHERE subdbid = (SELECT oid FROM pg_database WHERE datname = current_database())
  AND NOT (SELECT rolsuper FROM pg_roles WHERE rolname = current_user);
SELECT concat('castore:missing logical replication slot ', slot_name),
  'no dump has replication slots, and a rollback is refused while there is one' FROM pg_replication_slots
WHERE database = current_database() AND NOT temporary;
SELECT concat('castore:missing options of the user mapping for ', usename, ' on ', srvname),
  'only a superuser and the owner of the server can read them' FROM pg_user_mappings m
WHERE umoptions IS NULL AND NOT (SELECT rolsuper FROM pg_roles WHERE rolname = current_user)
  AND NOT (SELECT pg_has_role(srvowner, 'USAGE') FROM pg_foreign_server s WHERE s.oid = m.srvid);
SELECT format('SELECT %L, %L WHERE EXISTS (SELECT FROM ONLY %s);',
  concat('castore:missing rows of ', {_RELATION.format("c.oid")}),
  'the table belongs to an extension that does not mark it as having rows of its own, and pg_dump leaves them out',
  c.oid::regclass)
FROM pg_class c WHERE c.relkind = 'r' AND {_MEMBER} AND NOT {_CONFIGURED} AND c.oid >= 16384
  AND has_table_privilege(c.oid, 'SELECT') AND {_SCHEMAS.format("c.relnamespace")} ORDER BY c.oid \\gexec
"""
"""For psql: gives one row per object that pg_dump leaves out, and the reason."""


def condensed(inventory: Inventory, *, always: bool = False) -> Inventory:
    """Return an inventory that fits the first line of a dump: a very large one becomes a digest per kind."""
    if not always and len(json.dumps(inventory)) <= _MOST_BYTES:
        return inventory
    kinds: dict[str, list[str]] = {}
    for name in sorted(inventory):
        kinds.setdefault(name.partition(" ")[0], []).append(f"{name}\0{inventory[name]}")
    return {
        f"{kind} (all {len(found)})": hashlib.sha256("\0".join(found).encode()).hexdigest()[:16]
        for kind, found in kinds.items()
    }


def names_only(inventory: Inventory) -> Inventory:
    """Return an inventory without definitions, which another version of the server writes differently."""
    return {name: text if name.startswith("rows of ") else "" for name, text in inventory.items()}


def without_rows(inventory: Inventory) -> Inventory:
    """Return an inventory without numbers of rows."""
    return {name: text for name, text in inventory.items() if not name.startswith("rows ")}


def split(pairs: Iterable[tuple[str, str]]) -> tuple[Inventory, dict[str, dict[str, str]]]:
    """Return the inventory from the output of the scripts above, and the other records by kind and name."""
    inventory: Inventory = {}
    kinds = ("snapshot", "extension", "missing", "view", "order", "failed")
    rest: dict[str, dict[str, str]] = {kind: {} for kind in kinds}
    for name, value in pairs:
        if name.startswith("castore:"):
            kind, _, what = name.removeprefix("castore:").partition(" ")
            rest[kind][what] = value
        else:
            inventory[name] = value
    return inventory, rest
