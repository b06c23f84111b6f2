"""`castore config show` prints what a service gets."""

from __future__ import annotations

import json

from tests.support.service_defaults import DEFAULTS, SERVICES


def test_config_show_prints_the_result(castore, home):
    (home / "castore.toml").write_text(DEFAULTS + SERVICES)
    shown = json.loads(castore("config", "show").stdout)["service"]
    assert shown["a"]["keep"]["daily"] == 7
    assert shown["b"]["keep"]["daily"] == 0
    assert shown["a"]["parts"]["t"]["source"]["exclude"] == ["*.tmp", "cache/", "!keep.tmp"]
