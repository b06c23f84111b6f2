"""The command line: one file a command group.

The only layer that prints, prompts or reads the environment.
"""
