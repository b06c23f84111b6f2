"""Restore stored trees into live directories."""
