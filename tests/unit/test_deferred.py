"""Classes and patterns that are completed at their first use behave like those of the standard library."""

from __future__ import annotations

import copy
import dataclasses
import inspect
import pickle
import subprocess
import sys
import threading
from dataclasses import FrozenInstanceError, field
from typing import Any

import pytest

from castore.deferred import dataclass, pattern


@dataclass(frozen=True, kw_only=True)
class Point:
    """Two numbers."""

    x: int
    y: int = 2
    seen: list[int] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class Named(Point):
    name: str = "p"


def fresh() -> Any:
    @dataclass
    class Pair:
        a: int
        b: str = "b"

        def __post_init__(self) -> None:
            self.sum = f"{self.a}{self.b}"

    return Pair


def test_nothing_is_compiled_before_the_first_instance():
    pair = fresh()
    assert "__init__" not in vars(pair)
    assert pair(1).sum == "1b"
    assert "__init__" in vars(pair)


def test_instances_have_the_methods_of_a_dataclass():
    assert Point(x=1) == Point(x=1) != Point(x=2)
    assert repr(Point(x=1)) == "Point(x=1, y=2, seen=[])"
    assert dataclasses.replace(Point(x=1), y=5).y == 5
    assert Named(x=1) == Named(x=1, name="p")
    assert copy.copy(Named(x=1)) == pickle.loads(pickle.dumps(Named(x=1)))  # noqa: S301 - its own
    with pytest.raises(FrozenInstanceError):
        Point(x=1).x = 2  # type: ignore[misc]
    with pytest.raises(TypeError):
        fresh()()
    with pytest.raises(TypeError):
        fresh()(1, "b", 3)


def test_a_class_is_completed_when_its_fields_or_signature_are_asked_for():
    assert [f.name for f in dataclasses.fields(fresh())] == ["a", "b"]
    assert dataclasses.is_dataclass(fresh())
    assert list(inspect.signature(fresh()).parameters) == ["a", "b"]

    @dataclass(frozen=True, kw_only=True)
    class Below(Point):
        z: int = 3

    assert list(inspect.signature(Below).parameters) == ["x", "y", "seen", "z"]

    @dataclasses.dataclass
    class Plain(fresh()):  # type: ignore[misc]
        c: int = 1

    assert Plain(1) == Plain(1, "b", 1)


def test_a_subclass_without_fields_works_before_and_after_its_base():
    class Own(fresh()):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__(7)

    assert Own().a == 7
    assert Own().sum == "7b"


def test_threads_that_create_the_first_instances_all_get_complete_ones():
    for _ in range(20):
        pair, made, gate = fresh(), [], threading.Barrier(8)

        def create(pair=pair, made=made, gate=gate):
            gate.wait()
            made.append(pair(3).sum)

        threads = [threading.Thread(target=create) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert made == ["3b"] * 8


def test_classes_with_slots_or_a_constructor_are_complete_at_once():
    @dataclass(slots=True)
    class Slotted:
        a: int

    assert Slotted(1) == Slotted(1)
    assert not hasattr(Slotted(1), "__dict__")

    class Constructed:
        def __new__(cls, *args: Any) -> Any:
            made = object.__new__(cls)
            made.given = args
            return made

    @dataclass
    class Below(Constructed):
        a: int

    assert Below(1).given == (Below(1).a,) == (1,)


def test_a_pattern_is_compiled_once_when_it_is_used():
    digits = pattern("[0-9]+")
    assert digits.sub("n", "a12b3") == "anbn"
    assert digits.fullmatch("12")
    assert digits.pattern == "[0-9]+"


def test_a_list_of_generations_imports_nothing_of_snapshots(castore, tmp_path):
    (tmp_path / "d").write_text("x")
    castore("snapshot", "s", "--dump", f"d={tmp_path / 'd'}")
    script = (
        "import sys; sys.argv = ['castore', 'log', 's']\n"
        "from castore.cli.main import run_command\n"
        "assert run_command() == 0\n"
        "print(sorted(sys.modules), file=sys.stderr)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    imported = set(eval(done.stderr))  # noqa: S307 - the list that it printed
    assert not imported & {
        "castore.content.pipeline", "castore.services.snapshot", "concurrent.futures.thread", "subprocess", "zstandard",
    }
