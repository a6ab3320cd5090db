"""What is measured of an image, by name."""
