"""Roll a service back: plan, journal, steps."""
