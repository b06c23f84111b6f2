"""The whole story: a small web application, its database and uploads, upgraded, rolled back, drilled."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.data_dir_templates import folder_for_servers
from tests.support.mariadb import MariaDBServer
from tests.support.postgres import missing

Run = Callable[..., subprocess.CompletedProcess]

# Of both revisions: the column that a page's title is in is what the migration renames.
APPLICATION = """
import http.server, json, os, subprocess, sys
TITLE = "{title}"
TOP, SOCKET, PORT = sys.argv[1:4]
def sql(text):
    argv = ["mariadb", "--no-defaults", "--socket=" + SOCKET, "--user=root", "--batch", "--skip-column-names", "app"]
    done = subprocess.run(argv, input=text, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(done.stderr)
    return [line.split("\\t") for line in done.stdout.splitlines()]
class Handler(http.server.BaseHTTPRequestHandler):
    def log_message(self, *args): pass
    def do_GET(self):
        try:
            pages = sql("SELECT id, " + TITLE + " FROM pages ORDER BY id")
            files = sorted(os.listdir(os.path.join(TOP, "uploads")))
            body, code = json.dumps({{"revision": TITLE, "pages": pages, "files": files}}), 200
        except Exception as error:
            body, code = str(error), 500
        self.send_response(code); self.end_headers(); self.wfile.write(body.encode())
    def do_POST(self):
        name = self.rfile.read(int(self.headers["Content-Length"])).decode()
        sql("INSERT INTO pages (" + TITLE + ") VALUES ('" + name + "')")
        with open(os.path.join(TOP, "uploads", name), "w") as file:
            file.write(name * 100)
        self.send_response(201); self.end_headers()
server = http.server.HTTPServer(("127.0.0.1", int(PORT)), Handler)
with open(os.path.join(TOP, "pid"), "w") as file:
    file.write(str(os.getpid()))
server.serve_forever()
"""
TOML = """
[service.app]
revision = {{ link = "{top}/system" }}
follow = "restore"
stop = ["sh", "{top}/stop"]
start = ["sh", "{top}/start"]
health = ["{python}", "-c", "import urllib.request as u; u.urlopen('http://127.0.0.1:{port}/', timeout=5)"]
health-timeout = 10
undo = ["sh", "-c", "ln -sfn revision-1 {top}/system"]
drill-check = ["sh", "-c", "mariadb --no-defaults --socket=$CASTORE_DRILL_DB_SOCKET --user=root drill -e 'SELECT count(*) FROM pages' && ls $CASTORE_DRILL_UPLOADS_PATH"]

[service.app.parts.db]
engine = "mariadb"
database = "app"
socket = "{socket}"
user = "root"

[service.app.parts.uploads]
engine = "tree"
path = "{top}/uploads"
"""


@dataclass
class App:
    top: Path
    port: int
    run: Run

    def get(self) -> dict:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/", timeout=10) as answer:
            return json.load(answer)

    def post(self, name: str) -> None:
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}/", data=name.encode(), method="POST")
        urllib.request.urlopen(request, timeout=10).close()

    def castore(self, command: str, *arguments: str, expect: int = 0) -> subprocess.CompletedProcess:
        return self.run(command, "--config", str(self.top / "castore.toml"), *arguments, expect=expect)


@pytest.fixture
def app(castore: Run, monkeypatch: pytest.MonkeyPatch) -> Iterator[App]:
    if shutil.which("mariadb") is None:
        missing("there is no MariaDB client in PATH")
    top = Path(tempfile.mkdtemp(prefix="castore-story-", dir=folder_for_servers()))
    monkeypatch.setenv("CASTORE_STORE", str(top / "store"))
    monkeypatch.setenv("TMPDIR", "/tmp")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with MariaDBServer() as server:
        server.sql("CREATE DATABASE app; CREATE TABLE app.pages (id INT AUTO_INCREMENT PRIMARY KEY, title VARCHAR(50) NOT NULL)")
        (top / "uploads").mkdir()
        for number, title in ((1, "title"), (2, "headline")):
            folder = top / f"revision-{number}"
            folder.mkdir()
            (folder / "app.py").write_text(APPLICATION.format(title=title))
        (top / "system").symlink_to("revision-1")
        (top / "start").write_text(
            f"{sys.executable} {top}/system/app.py {top} {server.socket} {port} </dev/null >{top}/log 2>&1 &\n"
        )
        (top / "stop").write_text(
            f"kill $(cat {top}/pid)\nfor i in $(seq 100); do grep -q '^State:.[ST]' /proc/$(cat {top}/pid)/status 2>/dev/null || exit 0; sleep 0.05; done\n"
        )
        (top / "migrate").write_text(
            f"mariadb --no-defaults --socket={server.socket} --user=root app -e "
            '"ALTER TABLE pages CHANGE title headline VARCHAR(99) NOT NULL; CREATE VIEW newest AS SELECT max(id) AS id FROM pages"\n'
        )
        (top / "deploy").write_text(
            f"set -e\nsh {top}/stop\nln -sfn revision-2 {top}/system\nsh {top}/migrate\nsh {top}/start\n"
        )
        (top / "castore.toml").write_text(
            TOML.format(top=top, socket=server.socket, port=port, python=sys.executable)
        )
        castore("init")
        subprocess.run(["sh", top / "start"], check=True)
        found = App(top, port, castore)
        for _ in range(200):
            try:
                found.get()
                break
            except OSError:
                time.sleep(0.05)
        try:
            yield found
        finally:
            subprocess.run(["sh", top / "stop"], check=False)
            shutil.rmtree(top, ignore_errors=True)


def test_state_follows_the_configuration(app: App):
    app.castore("follow", "app")
    app.post("first")
    app.post("second")
    before = app.get()
    assert [title for _, title in before["pages"]] == before["files"] == ["first", "second"]

    # An upgrade whose new revision does not come up: all of it is reverted.
    good = (app.top / "revision-2" / "app.py").read_text()
    (app.top / "revision-2" / "app.py").write_text(good.replace('TITLE = "headline"', 'TITLE = "no_such_column"'))
    failed = app.castore("guard", "app", "--", "sh", str(app.top / "deploy"), expect=9)
    assert "health check failed" in failed.stderr
    assert app.get() == before

    # The upgrade, fixed.
    (app.top / "revision-2" / "app.py").write_text(good)
    app.castore("guard", "app", "--", "sh", str(app.top / "deploy"))
    after = app.get()
    assert (after["revision"], after["pages"], after["files"]) == ("headline", before["pages"], before["files"])
    app.post("third")
    app.castore("snapshot", "app")
    assert len(app.get()["pages"]) == 3

    # The system is rolled back, as after a bad week; at the next boot the state follows.
    (app.top / "system").unlink()
    (app.top / "system").symlink_to("revision-1")
    printed = app.castore("follow", "app")
    assert "is restored" in printed.stdout
    assert app.get() == before
    app.post("fourth")
    assert [title for _, title in app.get()["pages"]] == ["first", "second", "fourth"]

    # Forward again: what was there then is there again.
    app.castore("snapshot", "app")
    (app.top / "system").unlink()
    (app.top / "system").symlink_to("revision-2")
    app.castore("follow", "app")
    assert [title for _, title in app.get()["pages"]] == ["first", "second", "third"]
    assert app.get()["files"] == ["first", "second", "third"]

    drilled = app.castore("drill", "app")
    assert "3 rows in 1 table" in drilled.stdout
    assert "is sound" in drilled.stdout
    events = json.loads(app.castore("events", "--json").stdout)
    assert [event["kind"] for event in events if event["kind"] != "snapshot"][:3] == ["drill", "rollback", "follow"]
