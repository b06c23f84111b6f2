"""The results of an analysis as one HTML page with interactive plots, which needs nothing from a network.

The charts are plotly.js (MIT licence), which the package plotly ships as one file: it has a treemap and is
maintained. It makes a page of 5 MB.
"""

from __future__ import annotations

import json
import time
from importlib.resources import files
from typing import TYPE_CHECKING, Any, Final

import msgspec

from castore.errors import UsageError

if TYPE_CHECKING:
    from castore.analysis.results import Analysis

_TEMPLATE: Final = "page.html"


def check_library() -> None:
    """Raise UsageError if the charting library is not installed."""
    _library()


def _library() -> str:
    try:
        from plotly.offline import get_plotlyjs  # noqa: PLC0415 - an optional dependency
    except ImportError:
        raise UsageError(
            "--html needs the package plotly, which is not installed: pip install 'castore[plots]'"
        ) from None
    library: str = get_plotlyjs()
    return library


def page_of(analysis: Analysis, title: str) -> str:
    """Return the page. title: what was analysed. Raises UsageError if the charting library is missing."""
    plain: dict[str, Any] = msgspec.to_builtins(msgspec.structs.replace(analysis, warnings=[]))
    plain |= {"title": title, "date": time.strftime("%Y-%m-%d")}
    # In ASCII, and without what could end the element that holds it.
    data = json.dumps(plain).replace("<", "\\u003c")
    library = _library().replace("</script", "<\\/script")
    page = files("castore.analysis").joinpath(_TEMPLATE).read_text(encoding="utf-8")
    before, _, after = page.partition("@DATA@")
    middle, _, end = after.partition("@LIBRARY@")
    return before + data + middle + library + end
