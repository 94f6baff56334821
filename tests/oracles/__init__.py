"""Slow, obvious, independent references that the library is tested against; nothing here imports `uotod`."""
