"""A live directory tree into a store."""
