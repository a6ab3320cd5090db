"""Networks that compare images, one value for each image."""
