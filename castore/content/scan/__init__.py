"""Scan a live directory tree into a store."""
