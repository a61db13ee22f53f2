"""Bytes in, float32 out: the file formats that weights come in."""
