"""castore.toml: which store, whose recipients, and what there is to keep of each service."""

from __future__ import annotations

from castore.services.config.decode import load
from castore.services.config.settings import Keep, PartSettings, Revision, Service, Settings, TreePart
from castore.services.config.values import parse_span

__all__ = ["Keep", "PartSettings", "Revision", "Service", "Settings", "TreePart", "load", "parse_span"]
