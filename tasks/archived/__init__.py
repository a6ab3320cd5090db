"""What an archive keeps, as tensors and pictures: runs, anchors, originals."""
