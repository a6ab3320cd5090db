"""Where codes live: W, W+, the style space S, and their statistics."""
