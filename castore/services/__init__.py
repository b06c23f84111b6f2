"""Services: castore.toml, revisions, snapshots, restores, rollbacks, retention, guard and follow."""
