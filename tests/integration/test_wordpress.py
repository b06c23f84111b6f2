"""WordPress, installed by its own installer on MariaDB, through guard, follow, rollback, undo and drill.

castore's account has the rights that castore/docs/engines/mariadb.md names, and no more.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.data_dir_templates import folder_for_servers
from tests.support.distro_packages import WORDPRESS, php, unpacked
from tests.support.mariadb import MariaDBServer
from tests.support.random_mariadb import contents, differing

Run = Callable[..., subprocess.CompletedProcess]
PAGE = Path(__file__).resolve().parents[2] / "castore/docs/engines/mariadb.md"
SETTINGS = """<?php
define('ABSPATH', 'WORDPRESS/');
define('DB_NAME', 'word_press'); define('DB_USER', 'wordpress'); define('DB_PASSWORD', 'secret');
define('DB_HOST', 'localhost:SOCKET'); define('DB_CHARSET', 'utf8mb4'); define('DB_COLLATE', '');
define('WP_CONTENT_DIR', 'TOP/content'); define('WP_HTTP_BLOCK_EXTERNAL', true); define('DISABLE_WP_CRON', true);
$_SERVER['HTTP_HOST'] = 'localhost'; $_SERVER['REQUEST_URI'] = '/'; $_SERVER['SERVER_PROTOCOL'] = 'HTTP/1.1';
$table_prefix = 'wp_';
if (getenv('INSTALLING')) { define('WP_INSTALLING', true); }
require ABSPATH . 'wp-settings.php';
require_once ABSPATH . 'wp-admin/includes/upgrade.php';
"""
INSTALL = "wp_install('A site', 'admin', 'a@example.org', true, '', 'secret');"
POST = "wp_insert_post(['post_title' => 'TITLE', 'post_content' => \"It's 🌳 <b>bold</b>\\n\", 'post_status' => 'publish']);"
UPGRADE = """
global $wpdb;
dbDelta("CREATE TABLE {$wpdb->prefix}shop (id bigint(20) NOT NULL AUTO_INCREMENT, sku varchar(191) NOT NULL, PRIMARY KEY  (id))");
$wpdb->query("ALTER TABLE {$wpdb->posts} ADD COLUMN price DECIMAL(9,2) DEFAULT NULL, DROP KEY post_author");
$wpdb->query("CREATE OR REPLACE VIEW wp_published AS SELECT ID, post_title FROM {$wpdb->posts} WHERE post_status = 'publish'");
$wpdb->query("CREATE TRIGGER `word_press`.`counted` AFTER INSERT ON `word_press`.`{$wpdb->posts}` FOR EACH ROW INSERT INTO `word_press`.wp_shop (sku) VALUES (NEW.ID)");
update_option('shop_version', '2');
file_put_contents('TOP/content/uploads/logo.txt', 'new');
"""
HEALTH = "if (get_option('blogname') !== 'A site' || !get_posts() || get_option('broken')) exit(1);"
TOML = """
[service.blog]
revision = {{ link = "{top}/system" }}
follow = "restore"
health = ["php", "{top}/health.php"]
health-timeout = 1
undo = ["ln", "-sfn", "one", "{top}/system"]
drill-check = ["sh", "-c", "mariadb --no-defaults --socket=$CASTORE_DRILL_DB_SOCKET --user=root $CASTORE_DRILL_DB_DATABASE -e 'SELECT count(*) FROM wp_posts'"]

[service.blog.parts.db]
engine = "mariadb"
database = "word_press"
socket = "{socket}"
user = "castore"
password = {{ file = "{top}/password" }}

[service.blog.parts.uploads]
engine = "tree"
path = "{top}/content/uploads"
"""


@dataclass
class Blog:
    top: Path
    server: MariaDBServer
    run: Run

    def script(self, name: str, code: str) -> None:
        """Write a program that runs code within WordPress."""
        folder = unpacked(*WORDPRESS) / "usr/share/wordpress"
        settings = SETTINGS.replace("SOCKET", self.server.socket).replace("WORDPRESS", str(folder))
        (self.top / name).write_text((settings + code).replace("TOP", str(self.top)))

    def php(self, code: str, **environment: str) -> None:
        """Run code within WordPress."""
        self.script("script.php", code)
        script = self.top / "script.php"
        done = subprocess.run(["php", script], capture_output=True, text=True, check=False, env={**os.environ, **environment})
        assert done.returncode == 0, done.stdout + done.stderr

    def castore(self, command: str, *arguments: str, expect: int = 0) -> subprocess.CompletedProcess:
        return self.run(command, "--config", str(self.top / "castore.toml"), *arguments, expect=expect)

    def deploy(self, name: str, code: str, *, expect: int = 0) -> subprocess.CompletedProcess:
        """Run a deployment of a revision under guard."""
        self.script("deploy.php", code)
        (self.top / "deploy").write_text(f"set -e\nln -sfn {name} {self.top}/system\nphp {self.top}/deploy.php\n")
        return self.castore("guard", "blog", "--", "sh", str(self.top / "deploy"), expect=expect)

    def state(self) -> dict[str, str]:
        return contents(self.server, "word_press")


def rights() -> str:
    """Return the statements of the documentation that give castore's account its rights."""
    blocks = re.findall(r"```sql\n(.*?)```", PAGE.read_text(), re.DOTALL)
    return "".join(blocks).replace("`shop`", "`word\\_press`").replace("IDENTIFIED VIA unix_socket", "IDENTIFIED BY 'secret'")


@pytest.fixture
def blog(castore: Run, monkeypatch: pytest.MonkeyPatch) -> Iterator[Blog]:
    php("mysqli")
    top = Path(tempfile.mkdtemp(prefix="castore-blog-", dir=folder_for_servers()))
    monkeypatch.setenv("CASTORE_STORE", str(top / "store"))
    monkeypatch.setenv("TMPDIR", "/tmp")
    try:
        with MariaDBServer() as server:
            server.sql("CREATE DATABASE word_press CHARACTER SET utf8mb4; CREATE USER wordpress@localhost IDENTIFIED BY 'secret'")
            server.sql("GRANT ALL PRIVILEGES ON `word\\_press`.* TO wordpress@localhost;" + rights())
            (top / "content/uploads").mkdir(parents=True)
            (top / "password").write_text("secret\n")
            (top / "system").symlink_to("one")
            (top / "castore.toml").write_text(TOML.format(top=top, socket=server.socket))
            castore("init")
            found = Blog(top, server, castore)
            found.script("health.php", HEALTH)
            found.php(INSTALL, INSTALLING="1")
            yield found
    finally:
        shutil.rmtree(top, ignore_errors=True)


def test_wordpress_goes_back_and_forth_with_its_revisions(blog: Blog):
    blog.run("config", "check", "--config", str(blog.top / "castore.toml"))
    blog.php(POST.replace("TITLE", "first"))
    first = blog.state()
    assert len([name for name in first if name.startswith("rows of wp_")]) == 12

    # A deployment that breaks the site is reverted, with its changes of the schema.
    failed = blog.deploy("two", UPGRADE + "update_option('broken', '1');", expect=9)
    assert "health check failed" in failed.stderr
    assert differing(first, blog.state()) == []
    assert os.readlink(blog.top / "system") == "one"
    assert not (blog.top / "content/uploads/logo.txt").exists()

    blog.deploy("two", UPGRADE)
    blog.php(POST.replace("TITLE", "second"))
    second = blog.state()
    assert differing(first, second) != []
    assert blog.server.sql("SELECT count(*) FROM wp_shop", "word_press") > "0"
    blog.castore("snapshot", "blog")

    # The system goes back, and the state follows; then forward.
    for target, wanted in (("one", first), ("two", second)):
        (blog.top / "system").unlink()
        (blog.top / "system").symlink_to(target)
        blog.castore("follow", "blog")
        assert differing(wanted, blog.state()) == []

    blog.php(POST.replace("TITLE", "third"))
    third = blog.state()
    blog.castore("rollback", "blog", "--to", "latest")
    assert differing(second, blog.state()) == []
    blog.castore("rollback", "blog", "--undo")
    assert differing(third, blog.state()) == []
    drilled = blog.castore("drill", "blog")
    assert "in 13 tables, CHECK TABLE ok" in drilled.stdout
    assert [one for one in blog.server.databases() if one.startswith("castore")] == []
