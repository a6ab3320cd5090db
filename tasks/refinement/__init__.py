"""Stage 2: inversions of an archive refined, shard by shard."""
