"""Photos of faces: found, cut as FFHQ was, compared, and put back."""
