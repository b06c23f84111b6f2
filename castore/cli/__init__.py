"""The command line: `commands` has one file a verb; the other modules are shared by several verbs.

The only layer that prints, prompts or reads the environment.
"""
