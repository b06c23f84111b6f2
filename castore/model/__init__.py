"""The data that is stored, and its encoding: frozen, typed, without I/O.

`castore/docs/format.md` gives the bytes. What is decoded here may come from a damaged or hostile
store, so every decoder checks what it returns and raises DamageError.
"""
