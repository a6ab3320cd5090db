"""Refinements beside the inversions that they were made of."""
