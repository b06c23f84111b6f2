"""What data would take in a store: runs the real pipeline with several settings, and stores nothing.

Each setting has a trial store (`trial`), which counts its packs and discards them. `run` passes the same data
to each of them, and `advice` recommends a setting.
"""
