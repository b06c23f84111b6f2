"""The documentation that is shipped with castore: `castore help TOPIC` shows a page of castore/docs.

A topic is a page's file name without `.md`. Pages of engines are topics of their own: `castore help sqlite`.
"""

from __future__ import annotations

import re
import sys
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator
    from importlib.resources.abc import Traversable

_WIDTH: Final = 100
"""Columns: longer lines are hard to read."""
_LINK: Final = re.compile(r"\[([^]\n]+)\]\((?:[a-z-]+/|\.\./)?([a-z-]+)\.md(?:#[a-z0-9-]*)?\)")
_ANCHOR: Final = re.compile(r'<a id="[a-z-]+"></a>')
_COMMENT: Final = re.compile(r"^<!--.*?-->\n+", re.DOTALL | re.MULTILINE)


def topics() -> dict[str, str]:
    """Return the title of each topic by its name, in alphabetical order."""
    titles = {name: _title(page) for name, page in _pages()}
    return dict(sorted(titles.items()))


def read_topic(name: str) -> str | None:
    """Return the Markdown text of a topic without comments and anchors; None if there is no such topic.

    name: also as pages link to each other, such as keys.md#machines or engines/postgresql.
    """
    name = name.partition("#")[0].removesuffix(".md").rpartition("/")[2]
    for topic, page in _pages():
        if topic == name:
            return _ANCHOR.sub("", _COMMENT.sub("", page.read_text(encoding="utf-8"))).rstrip("\n")
    return None


def show(text: str) -> None:
    """Print Markdown: rendered if standard output is a terminal, else unchanged."""
    if not sys.stdout.isatty():
        print(text)
        return
    from rich.console import Console
    from rich.markdown import Markdown

    console = Console()
    console.width = min(console.width, _WIDTH)
    linked = _LINK.sub(lambda link: f"{link[1]} (`castore help {link[2]}`)", text)
    console.print(Markdown(linked, hyperlinks=False))


def _pages() -> Iterator[tuple[str, Traversable]]:
    from importlib.resources import files

    folder = files("castore").joinpath("docs")
    for place in (folder, folder.joinpath("engines")):
        for page in place.iterdir():
            if page.name.endswith(".md"):
                yield page.name.removesuffix(".md"), page


def _title(page: Traversable) -> str:
    """Return a page's first heading."""
    with page.open(encoding="utf-8") as lines:
        return next((line[2:].strip() for line in lines if line.startswith("# ")), "")
