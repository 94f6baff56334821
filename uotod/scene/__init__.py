"""Scenes: what users pass, parsed once."""
