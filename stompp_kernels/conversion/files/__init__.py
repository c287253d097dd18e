"""Packed networks are files: saved and loaded in the packed file format, exported and packaged by PyTorch."""
