"""The commands: one file a verb, which `castore.cli.main` imports when the command runs."""
