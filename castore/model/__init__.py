"""The data that is stored, and its encoding: frozen, typed, without I/O.

`castore/docs/format.md` specifies the bytes. What is decoded here may come from a damaged or hostile
store, so every decoder validates its result and raises DamageError.
"""
