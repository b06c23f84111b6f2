"""Objects of a store, one module per kind: their bytes, and what is checked when they are read."""
