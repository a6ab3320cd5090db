"""The page that leads to all reports of an archive."""
