"""Nightly dumps of real databases: what changes between them is what the database makes of it.

PostgreSQL with pgbench's tables and two of text, MariaDB, SQLite; each night 1 % of the rows are
updated at random, some inserted, some deleted; PostgreSQL also runs 30,000 of pgbench's transactions.
Dumps are made once into a folder and kept there.
"""

from __future__ import annotations

import hashlib
import os
import random
import sqlite3
import subprocess
import tempfile
import time
from typing import TYPE_CHECKING

from tests.support.postgres import Postgres

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

_TEXT = """
select setseed(0.5);
create table article (id int primary key, changed date, author text, body text);
create unlogged table draft (like article);
create table event (id bigserial primary key, at timestamp, kind text, detail text);
insert into event (at, kind, detail)
    select timestamp '2026-01-01' + i * interval '7 seconds', 'kind' || i % 11, md5(i::text)
    from generate_series(1, {events}) as i;
"""
_NIGHT = """
select setseed(0.{night});
update pgbench_accounts set abalance = abalance + (random() * 10000 - 5000)::int where random() < 0.01;
delete from pgbench_accounts where random() < 0.0005;
insert into pgbench_accounts
    select 100000000 + {night} * 1000000 + i, 1, i * 7 % 10000 from generate_series(1, {scale} * 50) as i;
update article set changed = draft.changed, body = draft.body from draft where article.id = draft.id;
delete from article where random() < 0.0005;
insert into article select * from draft where id > {articles} + ({night} - 1) * ({articles} / 2000);
truncate draft;
update event set kind = 'kind' || (random() * 10)::int where random() < 0.01;
insert into event (at, kind, detail)
    select now() + i * interval '7 seconds', 'kind' || i % 11, md5('{night}' || i)
    from generate_series(1, {events} / 500) as i;
"""


def postgres_nights(folder: str, *, nights: int = 5, scale: int = 30) -> list[str]:
    """Return the paths of `nights` dumps, about 20 MB each per unit of `scale`; made if missing."""
    paths = [os.path.join(folder, f"postgres-tx-{scale}-{night}.sql") for night in range(nights)]
    if all(map(os.path.exists, paths)):
        return paths
    os.makedirs(folder, exist_ok=True)
    sizes = {"scale": scale, "articles": scale * 5000, "events": scale * 50000}
    with Postgres() as server:
        host = ["--host", server.socket_folder, "--username", "postgres"]
        programs = server.programs

        def run(program: str, *arguments: str, script: str = "") -> None:
            argv = [os.path.join(programs, program), *host, *arguments]
            done = subprocess.run(argv, input=script, text=True, capture_output=True, check=False)
            if done.returncode:
                raise SystemExit(f"{argv}: {done.stderr}")

        def sql(script: str) -> None:
            run("psql", "--quiet", "--set", "ON_ERROR_STOP=1", "nights", script=script)

        run("createdb", "nights")
        run("pgbench", "--initialize", "--quiet", "--scale", str(scale), "nights")
        sql(_TEXT.format(**sizes))
        sql("copy article from stdin;\n" + _articles(range(1, sizes["articles"] + 1), 0))
        for night, path in enumerate(paths):
            if night:
                known = sizes["articles"] + (night - 1) * (sizes["articles"] // 2000)
                chosen = random.Random(night).sample(range(1, known + 1), known // 100)
                fresh = range(known + 1, known + 1 + sizes["articles"] // 2000)
                sql("copy draft from stdin;\n" + _articles([*chosen, *fresh], night))
                sql(_NIGHT.format(night=night, **sizes))
                # What autovacuum does on a live server: freed places are used again.
                sql("vacuum")
                run("pgbench", "--client=2", "--transactions=15000", "--no-vacuum", "nights")
            run("pg_dump", *same_each_time(programs), "--file", path + ".part", "nights")
            os.rename(path + ".part", path)
    return paths


def same_each_time(programs: str) -> list[str]:
    """Return the option that keeps a pg_dump, where it knows it, from writing something random."""
    printed = subprocess.run([os.path.join(programs, "pg_dump"), "--help"], capture_output=True, check=True)
    return ["--restrict-key=castore"] if b"--restrict-key" in printed.stdout else []


def _articles(numbers: Iterable[int], night: int) -> str:
    """Return rows of the article table as copy takes them, ended."""
    vocabulary = [hash_of(n, 0)[: 3 + n % 8] for n in range(4000)]
    rows = []
    for number in numbers:
        rng = random.Random(number * 100 + night)
        author, body = rng.choices(vocabulary, k=2), rng.choices(vocabulary, k=20 + number % 60)
        day = f"2026-{1 + (number + night) % 12:02}-01"
        rows.append(f"{number}\t{day}\t{' '.join(author)}\t{' '.join(body)}\n")
    return "".join(rows) + "\\.\n"


def sqlite_nights(folder: str, *, nights: int = 5, rows: int = 600_000) -> list[str]:
    """Return the paths of `nights` copies of an SQLite file, about 200 MB each; made if missing."""
    paths = [os.path.join(folder, f"sqlite-{rows}-{night}.db") for night in range(nights)]
    if all(map(os.path.exists, paths)):
        return paths
    os.makedirs(folder, exist_ok=True)
    live = os.path.join(folder, "live.db")
    if os.path.exists(live):
        os.unlink(live)
    with sqlite3.connect(live) as database:
        database.execute("create table page (id integer primary key, title text, body text)")
        database.execute("create index by_title on page (title)")
        database.executemany("insert into page values (?, ?, ?)", _pages(rows, 0))
        for night, path in enumerate(paths):
            if night:
                changed = [(hash_of(i, night), i) for i in range(rows) if hash_of(i, night)[0] < "\x33"]
                changed = [row for row in changed if int(row[0][:4], 16) < 655]
                database.executemany("update page set body = body || ? where id = ?", changed)
                database.executemany("insert into page values (?, ?, ?)", _pages(rows // 500, night))
            database.commit()
            with sqlite3.connect(path + ".part") as copy:
                database.backup(copy)
            os.rename(path + ".part", path)
    os.unlink(live)
    return paths


def hash_of(number: int, night: int) -> str:
    """Return 32 hex digits."""
    return hashlib.md5(f"{number}/{night}".encode()).hexdigest()


def _pages(count: int, night: int) -> Iterator[tuple[int | None, str, str]]:
    for i in range(count):
        digits = hash_of(i, 1000 + night)
        yield None, f"Title {digits[:8]}", " ".join(f"word{digits[k : k + 2]}" for k in range(30)) + str(i)


_MARIADB_NIGHT = """
update account set balance = balance + floor(rand({night}) * 1000) where rand() < 0.01;
delete from account where rand() < 0.0005;
insert into account (owner, balance, filler) select md5(seq + {night} * 100000), 0, repeat('x', 60)
    from seq_1_to_{added};
"""


def mariadb_nights(folder: str, *, nights: int = 5, rows: int = 1_500_000) -> list[str]:
    """Return the paths of `nights` dumps of a MariaDB, about 180 MB each; made if missing."""
    paths = [os.path.join(folder, f"mariadb-{rows}-{night}.sql") for night in range(nights)]
    if all(map(os.path.exists, paths)):
        return paths
    os.makedirs(folder, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="castore-mariadb-", dir="/tmp") as home:
        where = [f"--datadir={home}/data", *(["--user=root"] if os.geteuid() == 0 else [])]
        client = ["--no-defaults", f"--socket={home}/socket", "--user=root"]
        install = ["mariadb-install-db", "--no-defaults", "--auth-root-authentication-method=normal"]
        subprocess.run([*install, *where], check=True, capture_output=True)
        server = subprocess.Popen(
            ["mariadbd", "--no-defaults", f"--socket={home}/socket", "--skip-networking", *where],
            stderr=subprocess.DEVNULL,
        )

        def sql(script: str, *, check: bool = True) -> bool:
            argv = ["mariadb", *client]
            done = subprocess.run(argv, input=script, text=True, check=check, capture_output=not check)
            return done.returncode == 0

        try:
            while not sql("select 1", check=False):
                time.sleep(0.1)
            sql(
                "create database nights; use nights; create table account (id bigint auto_increment"
                " primary key, owner char(32), balance bigint, filler char(60));"
                " insert into account (owner, balance, filler)"
                f" select md5(seq), seq % 1000, repeat('x', 60) from seq_1_to_{rows};"
            )
            for night, path in enumerate(paths):
                if night:
                    sql("use nights;" + _MARIADB_NIGHT.format(night=night, added=rows // 500))
                with open(path + ".part", "wb") as file:
                    argv = ["mariadb-dump", *client, "--skip-dump-date", "nights"]
                    subprocess.run(argv, stdout=file, check=True)
                os.rename(path + ".part", path)
        finally:
            server.terminate()
            server.wait()
    return paths
