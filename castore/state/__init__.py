"""What castore keeps on this machine of each store: paths, locks, freshness, the writer's keys."""
