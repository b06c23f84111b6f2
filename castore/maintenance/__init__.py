"""Maintenance of a store: verify, repair, prune, compact, rebuild the index, report statistics."""
