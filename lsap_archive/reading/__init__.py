"""What readers see: an archive, its runs, rows by id, SQL and nearest codes."""
