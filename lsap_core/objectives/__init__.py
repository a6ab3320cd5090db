"""The terms that embedding minimizes, one value for each image."""
