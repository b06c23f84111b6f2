"""Stored trees into live directories."""
