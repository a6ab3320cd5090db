"""Where photos come from: folders, zips, arrays and manifests, listed, versioned and read."""
