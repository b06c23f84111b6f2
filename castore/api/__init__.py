"""The Python API: stores, services, generations and parts as objects that lock and synchronise by themselves.

The names are those of the package: `castore.open`, `castore.create`, `castore.Store` and so on. The command
line is written on it. A command that only lists must start fast: modules that take or restore state are
imported by the methods that need them.
"""
