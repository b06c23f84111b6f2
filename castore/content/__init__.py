"""Streams and trees to chunks and back: cutting, scanning, restoring, comparing."""
