"""Each value that a table of castore.toml cannot have is named by its key."""

from __future__ import annotations

import datetime as dt
from typing import Any

import msgspec
import pytest

from castore import engines
from castore.errors import ConfigProblemsError
from castore.services.config import settings
from castore.services.config.problems import Problems

TABLES = [
    *(settings.TopTable, settings.DefaultsTable, settings.ServiceTable, settings.HooksTable),
    *(settings.Keep, settings.Revision, settings.TreePart),
    *(engines.find(name) for name in engines.names()),
]
VALUES: tuple[Any, ...] = (
    *("text", "", 1, 1.5, True, dt.date(2026, 1, 1), dt.time(1), [], ["a"], [1], [[]], ["a", {}]),
    *({}, {"a": 1}, {"a": {"b": []}}, {"a": "b"}),
)


@pytest.mark.parametrize("kind", TABLES, ids=lambda kind: kind.__name__)
def test_a_wrong_value_of_any_key_is_named_by_its_key(kind: type[msgspec.Struct]) -> None:
    fields = msgspec.structs.fields(kind)
    for field in fields:
        for value in VALUES:
            try:
                msgspec.convert(value, field.type)
            except msgspec.ValidationError:
                problems = Problems("f")
                with pytest.raises(ConfigProblemsError) as caught:
                    problems.convert({field.encode_name: value}, kind, ("top",))
                first = caught.value.problems[0]
                assert first.startswith(f"f: top.{field.encode_name}"), first
                assert "expected " in first or "unknown key" in first or "was expected" in first, first
