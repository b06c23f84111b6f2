"""The version of castore, alone in its file so that `castore --version` imports nothing else."""

__version__ = "0.1.0"
