"""Stage 1: images in, codes out."""
