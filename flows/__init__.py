"""The pipeline, told as the paper's method section tells it, and the command line."""
