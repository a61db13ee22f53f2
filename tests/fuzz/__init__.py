"""Hostile bytes for every parser of provindex: seeds, a mutator that knows the formats, and guards. See README.md."""
