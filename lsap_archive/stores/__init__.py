"""Objects behind a URL, with the same promises in memory, on disk and in every cloud."""
