"""A castore.toml with defaults, and services that take them over or replace them."""

from __future__ import annotations

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
