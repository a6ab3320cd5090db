"""What each flow may be asked for: typed, described, refused before any work when it is wrong."""
