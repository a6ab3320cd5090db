"""The page of an inversion: methods side by side."""
