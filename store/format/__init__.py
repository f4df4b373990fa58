"""Bytes to values and back: PBS's on-disk formats, pure (no I/O, clock or randomness)."""
