"""`castore config show` prints what a service gets."""

from __future__ import annotations

import json

DEFAULTS = """
[defaults]
keep = { daily = 7, weekly = 4 }
timeout = 60
exclude = ["*.tmp", "cache/"]
before = ["true"]
stop = ["true", "default"]
revision = { link = "/run/current-system" }
"""
SERVICES = """
[service.a.parts.t]
engine = "tree"
path = "/a"
exclude = ["!keep.tmp"]

[service.a.parts.d]
engine = "command"
dump = ["true"]

[service.b]
keep = { last = 3 }
timeout = 5
before = []
stop = ["true", "own"]
revision = { value = "r1" }
[service.b.parts.t]
engine = "tree"
path = "/b"
"""


def test_config_show_prints_the_result(castore, home):
    (home / "castore.toml").write_text(DEFAULTS + SERVICES)
    shown = json.loads(castore("config", "show").stdout)["service"]
    assert shown["a"]["keep"]["daily"] == 7
    assert shown["b"]["keep"]["daily"] == 0
    assert shown["a"]["parts"]["t"]["source"]["exclude"] == ["*.tmp", "cache/", "!keep.tmp"]
