"""The embedded domain: handwritten digits at 32 px, with everything that a run needs and nothing to download."""
