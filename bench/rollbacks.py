"""What a rollback costs, and how much of that is castore's: a database and a tree, about 1 GB each.

    python bench/rollbacks.py [--scale N] [--files N] [--runs N] [--folder DIR]

The floor of the database is what its own programs need for the same: `pg_dump` of the present state, CREATE
DATABASE, `psql` of the dump that is to come back, ANALYZE, two renames. Of the tree it is `rsync -a --delete`
from a copy, or `cp -a` of the whole where rsync is not installed. 1 % of the rows, or files, have changed.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
from bench.tools import Castore, warm
from bench.trees import change_files, small
from tests.support.postgres import Postgres

TOML = """
[service.d.parts.d]
engine = "postgresql"
database = "live"
host = "{socket}"
user = "postgres"
program-path = "{programs}"

[service.t.parts.t]
engine = "tree"
path = "{tree}"
"""


def seconds(action) -> float:
    started = time.perf_counter()
    action()
    return time.perf_counter() - started


def run(argv: list[str], **options) -> None:
    subprocess.run(argv, check=True, stdout=options.pop("stdout", subprocess.DEVNULL), **options)


def database(folder: str, tool: Castore, server: Postgres, scale: int, runs: int) -> None:
    """Time rollbacks of a database, and what its own programs need."""
    config = ["--config", os.path.join(folder, "castore.toml")]
    where = ["--host", server.socket_folder, "--username", "postgres"]
    dump = os.path.join(folder, "dump.sql")

    def program(name: str, *arguments: str, **options) -> None:
        run([os.path.join(server.programs, name), *where, *arguments], **options)

    def own() -> None:
        with open(os.path.join(folder, "safety.sql"), "wb") as file:
            program("pg_dump", "live", stdout=file)
        server.psql("CREATE DATABASE floor TEMPLATE template0")
        program("psql", "--quiet", "--set=ON_ERROR_STOP=1", "--file", dump, "floor")
        server.psql("ANALYZE", "floor")
        server.psql("ALTER DATABASE floor RENAME TO floor2")
        server.dropdb("floor2")

    server.psql("CREATE DATABASE live TEMPLATE template0")
    make = ("--initialize", "--quiet", "--scale", str(scale), "live")
    program("pgbench", *make, stderr=subprocess.DEVNULL)
    with open(dump, "wb") as file:
        program("pg_dump", "live", stdout=file)
    tool.run(tool.command("snapshot", "d", *config))
    for night in range(runs):
        some = "UPDATE pgbench_accounts SET abalance = abalance + 1 WHERE random() < 0.01"
        server.psql(f"SELECT setseed(0.{night + 1}); {some}", "live")
        floor = seconds(own)
        total, memory = tool.run(tool.command("rollback", "d", "--to", "1", *config))
        size = os.path.getsize(dump) / 1e9
        print(
            f"PostgreSQL, dump of {size:.2f} GB: {total:6.2f} s, its programs alone {floor:6.2f} s, "
            f"castore's part {100 * (total - floor) / total:5.1f} %, {memory / 1000:.0f} MB",
            flush=True,
        )


def tree(folder: str, tool: Castore, files: int, runs: int) -> None:
    """Time rollbacks of a tree."""
    live = os.path.join(folder, "tree")
    config = ["--config", os.path.join(folder, "castore.toml")]
    os.mkdir(live)
    small(live, files)
    with open(os.path.join(live, "large"), "wb") as file:
        file.writelines(os.urandom(1 << 20) for _ in range(400))
    warm(live)
    copy = os.path.join(folder, "copy")
    run(["cp", "-a", live, copy])
    time.sleep(3)
    tool.run(tool.command("snapshot", "t", *config))
    figures = []
    for _ in range(runs):
        change_files(live)
        time.sleep(3)
        total, memory = tool.run(tool.command("rollback", "t", "--to", "1", *config))
        change_files(live)
        if shutil.which("rsync"):
            floor = seconds(lambda: run(["rsync", "-a", "--delete", copy + "/", live]))
        else:
            floor = float("nan")
        figures.append(total)
        printed = f"tree of {files} files: {total:6.2f} s, {memory / 1000:.0f} MB, rsync {floor:.2f} s"
        print(printed, flush=True)
    print(f"median {statistics.median(figures):.2f} s")


def main() -> None:
    """Make the data, take the runs."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--scale", type=int, default=100, help="of pgbench: 10 MB of dump each")
    parser.add_argument("--files", type=int, default=150_000)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--folder", default=None)
    options = parser.parse_args()
    made = tempfile.TemporaryDirectory(dir=options.folder, prefix="castore-bench-")
    with made as folder, Postgres() as server:
        names = {"socket": server.socket_folder, "programs": server.programs}
        with open(os.path.join(folder, "castore.toml"), "w") as file:
            file.write(TOML.format(tree=os.path.join(folder, "tree"), **names))
        tool = Castore(os.path.join(folder, "castore"))
        tool.init()
        database(folder, tool, server, options.scale, options.runs)
        tree(folder, tool, options.files, options.runs)


if __name__ == "__main__":
    main()
