"""castore.toml: the store, its recipients, and the services with their parts, hooks and retention rules.

`settings` has the structs, `decode` reads a file, `values` checks values, `problems` collects mistakes.
"""

from __future__ import annotations

from castore.services.config.decode import load
from castore.services.config.settings import Keep, PartSettings, Revision, Service, Settings, TreePart
from castore.services.config.values import parse_span

__all__ = ["Keep", "PartSettings", "Revision", "Service", "Settings", "TreePart", "load", "parse_span"]
