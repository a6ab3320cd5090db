"""What an evaluation would do, without doing it."""

from __future__ import annotations

from typing import Any

from tasks.editing.cost import calibration_cost
from tasks.evaluation.plan import EvaluationStage
from tasks.evaluation.request import EvaluationRequest


def dry_run(request: EvaluationRequest) -> dict[str, Any]:
    """Check everything and say what would be done; nothing is written."""
    stage = EvaluationStage(request, start=False)
    missing = stage.missing_calibrations()
    num_jobs = num_shards = num_images = 0
    for job in stage.jobs():
        num_jobs += 1
        num_shards += len(job.shards)
        num_images += job.num_images
    return {
        "archive": request.archive,
        "methods": list(stage.evaluations),
        "lpips": list(request.networks.lpips),
        "identity": list(request.networks.identity),
        "attributes": list(request.attributes),
        "strengths to calibrate": [f"{work.method}/{work.spec.name}" for work in missing.strengths],
        **calibration_cost(missing, stage.chosen.generator, device=request.device, published=request.published),
        "evaluations left": num_jobs,
        "shards left": num_shards,
        "images left": num_images,
    }
