"""What is kept of a service and how: castore.toml, revisions, programs, snapshots, roll-backs."""
