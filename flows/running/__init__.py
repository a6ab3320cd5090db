"""How every stage runs on Prefect: shards, retries, one writer at a time, workers, progress, results."""
