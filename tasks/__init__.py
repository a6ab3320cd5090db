"""Units of work: where the method meets storage, shards and machines."""
