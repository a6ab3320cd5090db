"""Files of networks and directions: found, told apart by their content, never run."""
