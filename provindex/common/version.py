"""The version of provindex, as answers state it."""

__version__ = "0.1.0"
