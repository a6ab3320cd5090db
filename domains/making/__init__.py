"""How a small domain is made on a CPU, from a few thousand images: its networks, its generator, its quality."""
