"""Looking after a store: verifying, counting, rebuilding the index."""
