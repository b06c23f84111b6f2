"""Who may read, add to and administer a store."""
