"""What evaluations have measured of inversions, refinements and edits."""
