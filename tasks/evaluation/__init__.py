"""Inversions and edits of an archive in, measurements out."""
