"""What a refinement would do, without doing it: images, shards, bytes."""

from __future__ import annotations

from collections import Counter
from typing import Any

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
    free = stage.writer.store.free_bytes()
    return {
        "archive": request.archive,
        "refinements": [one.name for one in stage.refinements],
        "images left by refinement": dict(+left),
        "shards left": num_shards,
        "bytes kept of an image": {one.name: one.bytes_per_image for one in stage.refinements},
        "archive bytes, before compression": stage.bytes_left(),
        "bytes free there": "not known" if free is None else free,
    }
