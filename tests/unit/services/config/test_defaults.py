"""[defaults] of castore.toml: what a service gets that does not say otherwise."""

from __future__ import annotations

import pytest

from castore.errors import ConfigProblemsError
from castore.services import config
from castore.services.config import Keep, Revision
from tests.support.service_defaults import DEFAULTS, SERVICES


@pytest.fixture
def read(tmp_path):
    def read(text, **options):
        path = tmp_path / "castore.toml"
        path.write_text(text)
        return config.load(str(path), **options)

    return read


def test_a_service_gets_the_defaults(read):
    found = read(DEFAULTS + SERVICES).service["a"]
    assert found.keep == Keep(daily=7, weekly=4)
    assert (found.timeout, found.before, found.stop) == (60, ("true",), ("true", "default"))
    assert found.revision == Revision(link="/run/current-system")
    assert found.parts["t"].source.exclude == ("*.tmp", "cache/", "!keep.tmp")
    assert found.parts["d"].source.timeout == 60


def test_what_a_service_says_replaces_a_default(read):
    found = read(DEFAULTS + SERVICES).service["b"]
    assert found.keep == Keep(last=3)
    assert (found.timeout, found.before, found.stop) == (5, (), ("true", "own"))
    assert found.revision == Revision(value="r1")
    assert found.parts["t"].source.exclude == ("*.tmp", "cache/")


@pytest.mark.parametrize(
    ("table", "mistake"),
    [
        ("keep = {}", "defaults.keep: no rule in it keeps anything"),
        ("timeout = -1", "defaults.timeout: seconds, a number above 0"),
        ('exclude = "x"', "defaults.exclude: expected a list, got text"),
        ("parts = {}", "defaults.parts: unknown key; known here: "),
        ("revision = {}", "defaults.revision: exactly one of"),
        ('stop = ["relative/path"]', "defaults.stop[0]: 'relative/path' is a relative path"),
    ],
)
def test_mistakes_are_reported_as_those_of_the_defaults(read, table, mistake):
    with pytest.raises(ConfigProblemsError) as caught:
        read(f"[defaults]\n{table}\n", tolerant=True)
    assert mistake in str(caught.value)
    assert len(caught.value.problems) == 1
