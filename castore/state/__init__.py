"""What castore keeps of each store on this machine: paths, locks, freshness, the writer's keys, events."""
