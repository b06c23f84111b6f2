"""Run generators that call each other, without Python's recursion limit."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import Generator

T = TypeVar("T")


def run(work: Generator[Any, Any, T]) -> T:
    """Run a generator and return its value.

    If the generator yields another generator, that one is run first, and its value is sent back, or its
    exception is raised there. So only memory limits the depth of the calls.
    """
    stack: list[Generator[Any, Any, Any]] = [work]
    value: Any = None
    error: Exception | None = None
    try:
        while stack:
            try:
                below = stack[-1].throw(error) if error is not None else stack[-1].send(value)
            except StopIteration as end:
                stack.pop()
                value, error = end.value, None
            except Exception as raised:  # noqa: BLE001 - it is raised in the caller
                stack.pop()
                value, error = None, raised
            else:
                stack.append(below)
                value, error = None, None
        if error is not None:
            raise error
    finally:
        while stack:
            stack.pop().close()
    result: T = value
    return result
