"""An example of every field of a run file, where its default is none."""

from __future__ import annotations

from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel

EXAMPLES: dict[str, Any] = {
    "source": "s3://bucket/photos",
    "archive": "s3://bucket/archive",
    "output": "s3://bucket/results",
    "domain": "face",
    "generator": "stylegan2-ffhq-config-f.pkl",
    "label": 3,
    "generator_label": 3,
    "methods": ["lsap_e", "lsap_o_w_plus"],
    "ReproduceEditability.methods": ["e4e", "lsap_e", "lsap_o_w_plus"],
    "embedding": {"num_steps": 300},
    "method_settings": {"lsap_o_w_plus": {"sncd_weight": 2}},
    "variants": {"mine": {"method": "lsap_o_w_plus", "sncd_weight": 2}},
    "RefineRun.variants": {"pti_long": {"refiner": "pti", "num_steps": 700}},
    "encoders": {"e4e": "e4e_ffhq_encode.pt"},
    "ReproduceTable3.encoders": ["e4e", "lsap_e"],
    "heads": {"mine": "offsets"},
    "perceptual": "lpips-alex",
    "metric_perceptual": "lpips-alex",
    "shard_rows": 64,
    "batch_size": 8,
    "gpus_each": 0.5,
    "device": "cuda",
    "min_count": 1,
    "memory_gb": 6,
    "validation_source": "s3://bucket/held-out",
    "evaluation_source": "s3://bucket/test",
    "training": {"batch_size": 8},
    "identity": "arcface",
    "EvaluateRun.identity": ["arcface"],
    "ReproduceRun.identity": ["arcface"],
    "method": "e4e",
    "backbone_weights": "model_ir_se50.pth",
    "init_from": "s3://bucket/encoders/e4e/encoder.safetensors",
    "refiner": "hyperstyle",
    "encoder": "e4e",
    "inverter": "s3://bucket/refiners/inverter/sfe_inverter.safetensors",
    "discriminator": "stylegan2-ffhq-config-f.pkl",
    "directions": {"smile": "smile.safetensors"},
    "ReproduceEditability.directions": {"smile": "smile"},
    "ReproduceInheritance.directions": {"smile": "smile"},
    "subject": "lsap_o_w_plus",
    "inversions": {"F4": "lsap_e/sam_f4"},
    "refiner_networks": {"hfgi": "hfgi.safetensors"},
    "refiners": ["hfgi", "pti"],
    "refiner_settings": {"pti": {"num_steps": 700}},
    "refiner_variants": {"pti_long": {"refiner": "pti", "num_steps": 700}},
    "segmenter": "superpixels",
    "edits": {"smile": {"direction": "smile", "strength": 3}},
    "ReproduceRun.edits": {"smile": {"edit": {"direction": "smile"}, "strength": 3}},
    "edit": {"direction": "smile"},
    "strength": 3,
    "attribute": "smile",
    "versions": {"lsap_e": "3f6b1c9a02d4e577"},
    "lpips": ["lpips-vgg", "lpips-alex"],
    "classifier": "none",
    "attributes": ["smile", "yaw"],
    "lec": {"smile": {"direction": "smile", "strength": 3}},
    "frechet": "inception",
    "reference": "s3://bucket/ffhq",
    "EvaluateRun.synthetic": {"count": 5000},
    "changes": {"smile": 0.5},
    "controls": {"lsap_o_w_plus": "stylegan2_w_plus"},
    "ReproduceEditability.label": r"-(\w+)$",
    "parts": ["table1", "figure5"],
    "refined": ["e4e/hfgi", "lsap_e/pti"],
    "SheetParameters.methods": ["e4e", "lsap_e"],
    "samples": 2000,
    "table3": {"source": "s3://bucket/ffhq", "seeds": [0]},
    "inversion": {"fit": "crop"},
    "refinement": {"segmenter": "superpixels"},
    "sweep_seeds": [0],
    "training_run": {"backbone_weights": "model_ir_se50.pth"},
    "anchor": {"num_samples": 50_000},
    "workers": {"count": 2, "device": "cpu"},
    "figure3": {"images": 4},
    "figure4": {"layer": 5},
    "figure5": {"images": 4},
    "synthetic": {"count": 5000},
}
"""By name, where the field of one model is another thing "Model.name"; others show a value of their type."""


def example_of(model: type[BaseModel], name: str) -> Any:
    """A value for a field: the table's, else another choice than the default, else the default."""
    for base in model.__mro__:
        if (found := EXAMPLES.get(f"{base.__name__}.{name}")) is not None:
            return found
    if name in EXAMPLES:
        return EXAMPLES[name]
    field = model.model_fields[name]
    default = field.get_default(call_default_factory=True)
    choices = [choice for choice in _choices(field.annotation) if choice != default]
    if isinstance(default, bool):
        return not default
    return choices[0] if choices else list(default) if isinstance(default, tuple) else default


def _choices(annotation: Any) -> list[Any]:
    if get_origin(annotation) is Literal:
        return list(get_args(annotation))
    return [choice for kind in get_args(annotation) for choice in _choices(kind)]
