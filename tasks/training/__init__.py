"""Images in, an encoder for their generator out."""
