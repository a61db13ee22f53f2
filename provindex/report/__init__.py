"""One document per answer, and its renderers."""
