"""Files: opened by name where others may write, copied, and described with all their metadata."""
