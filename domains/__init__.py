"""What a domain is: a generator, the networks that compare its images, its presets and its built-in images."""
