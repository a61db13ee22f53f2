"""Hostile files: what the command must survive. `run.py` tries them, README.md says which kinds there are."""
