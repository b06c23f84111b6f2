"""Definitions whose costly part is done when they are first used, not when their module is imported.

`@dataclass` of the standard library compiles up to six methods for each class, about 0.6 ms, and `re.compile`
translates each pattern. A command imports 40 such classes and 30 patterns, and uses a few of them: this was
a quarter of the time that castore took to start. Replace the imports only; nothing else differs.
"""

from __future__ import annotations

import threading

TYPE_CHECKING = False
if TYPE_CHECKING:
    from dataclasses import dataclass
    from re import compile as pattern
    from typing import Any
else:
    _lock = threading.RLock()
    _pending: dict[type, dict[str, Any]] = {}
    """The classes that are not yet complete, with the options of their decorators."""

    def dataclass(cls: Any = None, /, **options: Any) -> Any:
        """Make a class a dataclass, whose methods are compiled when its first instance is created."""
        if cls is None:
            return lambda cls: dataclass(cls, **options)
        own_new = next(base.__new__ for base in cls.__mro__ if "__new__" in base.__dict__)
        if options.get("slots") or (own_new is not object.__new__ and not hasattr(own_new, "deferred")):
            return _compiled(cls, options)
        _pending[cls] = options
        # Not __init__: dataclass() would keep it, and a class without one could be seen by another thread.
        cls.__new__ = _first_new(cls)
        cls.__dataclass_fields__ = _Fields()
        cls.__signature__ = _Signature()
        return cls

    def _compiled(cls: type, options: dict[str, Any]) -> type:
        import dataclasses

        return dataclasses.dataclass(**options)(cls)

    def _complete(cls: type) -> None:
        """Compile the methods of a class, unless another thread has done so."""
        with _lock:
            options = _pending.pop(cls, None)
            if options is not None:
                _compiled(cls, options)
                cls.__new__ = _later_new

    def _first_new(owner: type) -> Any:
        def new(cls: type, *_args: Any, **_kwargs: Any) -> Any:
            _complete(owner)
            return object.__new__(cls)

        new.deferred = True
        return new

    def _later_new(cls: type, *_args: Any, **_kwargs: Any) -> Any:
        return object.__new__(cls)

    _later_new.deferred = True

    class _Fields:
        """Replaces `__dataclass_fields__` until the class is complete; to read it completes the class."""

        def __get__(self, instance: object, owner: type) -> Any:
            for cls in owner.__mro__:
                if cls.__dict__.get("__dataclass_fields__") is self:
                    _complete(cls)
            return owner.__dataclass_fields__

    class _Signature:
        """Computes the signature of the class, that of the compiled `__init__`."""

        def __get__(self, instance: object, owner: type) -> Any:
            import inspect

            for cls in reversed(owner.__mro__):
                _complete(cls)
            signature = inspect.signature(owner.__init__)
            return signature.replace(parameters=list(signature.parameters.values())[1:])

    class pattern:  # noqa: N801 - it replaces a function
        """A regular expression that is compiled when it is first used."""

        def __init__(self, text: Any, flags: int = 0) -> None:
            self._arguments = text, flags

        def __getattr__(self, name: str) -> Any:
            import re

            found = getattr(re.compile(*self._arguments), name)
            setattr(self, name, found)
            return found


__all__ = ["dataclass", "pattern"]
