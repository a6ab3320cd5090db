"""Checking every object of an archive, and mending what is damaged."""
