"""Edits beside the inversions that they were made of."""
