"""What a refinement would do, without doing it: images, shards, bytes."""

from __future__ import annotations

from collections import Counter
from typing import Any

from tasks.pictures.previews import expected_preview_bytes
from tasks.refinement.plan import RefinementStage
from tasks.refinement.request import RefinementRequest


def dry_run(request: RefinementRequest) -> dict[str, Any]:
    """Check everything and say what would be done; nothing is written."""
    stage = RefinementStage(request, start=False)
    left: Counter[str] = Counter()
    num_shards = 0
    for job in stage.jobs():
        left[job.name] += job.num_images
        num_shards += len(job.shards)
    config = stage.config
    preview = expected_preview_bytes(config.content_size, config.image_channels, request.previews)
    free = stage.writer.store.free_bytes()
    return {
        "archive": request.archive,
        "refinements": [one.name for one in stage.refinements],
        "images left by refinement": dict(+left),
        "shards left": num_shards,
        "bytes kept of an image": {one.name: one.bytes_per_image for one in stage.refinements},
        "archive bytes, before compression": stage.bytes_left(),
        "archive bytes of previews, about": left.total() * preview,
        "bytes free there": "not known" if free is None else free,
    }
