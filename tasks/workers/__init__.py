"""Where work is done: this process, or actors on a Ray cluster."""
