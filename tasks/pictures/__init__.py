"""Pixels in and out of files: decoded, saved and read back, laid out on sheets."""
