"""Read records, and rebuild chunks from their deltas."""
