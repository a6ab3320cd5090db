"""Codes of an archive in, edited codes out; and where the directions of edits come from."""
