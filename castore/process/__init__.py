"""Programs that castore runs: their pipes, time, users and scratch directories."""
