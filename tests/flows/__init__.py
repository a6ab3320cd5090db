"""Whole commands, against servers that end with the last test of this folder."""
