"""What an editing run would do, without doing it."""

from __future__ import annotations

from collections import Counter
from typing import Any

from tasks.editing.plan import EditingStage
from tasks.editing.request import EditRequest


def dry_run(request: EditRequest) -> dict[str, Any]:
    """Check everything and say what would be done; nothing is written."""
    stage = EditingStage(request, start=False)
    missing = stage.missing_calibrations()
    left: Counter[str] = Counter()
    num_shards = 0
    for job in stage.jobs():
        left[job.name] += job.num_images
        num_shards += len(job.shards)
    return {
        "archive": request.archive,
        "edits": [edit.name for edit in stage.edits],
        "strengths": stage.strengths or "none",
        "out of reach": stage.refused or "none",
        "strengths to calibrate": [f"{work.method}/{work.spec.name}" for work in missing.strengths] or "none",
        "images left by edit, beside those to calibrate": dict(+left) or "none",
        "shards left": num_shards,
    }
