"""The random state of an image, which follows from its id and its run's seed."""

from __future__ import annotations

import hashlib


def image_seed(seed: int, image_id: str) -> int:
    """The random state of one image: the same in every shard, batch and run with this seed."""
    digest = hashlib.sha256(f"{seed}:{image_id}".encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:8], "little") >> 1
