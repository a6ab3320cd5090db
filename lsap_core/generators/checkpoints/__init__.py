"""Checkpoint formats, published and our own, translated to and from one set of names. Opens no file."""

from lsap_core.generators.checkpoints.canonical import (
    CanonicalCheckpoint,
    build_generator,
    canonical_shapes,
    from_canonical,
    generator_digest,
    to_metadata,
)
from lsap_core.generators.checkpoints.discriminators import (
    from_nvlabs_discriminator,
    from_nvlabs_discriminator_document,
    to_nvlabs_discriminator,
)
from lsap_core.generators.checkpoints.layouts import (
    ASSUMED,
    LAYOUTS,
    Layout,
    from_generator_document,
    plain_name,
)
from lsap_core.generators.checkpoints.nvlabs import from_nvlabs, from_nvlabs_document, to_nvlabs
from lsap_core.generators.checkpoints.rosinality import (
    from_rosinality,
    from_rosinality_document,
    to_rosinality,
    to_rosinality_document,
)
from lsap_core.generators.checkpoints.tensorflow import from_tensorflow_document, is_tensorflow
from lsap_core.generators.checkpoints.unpickling import read_pickle, read_records, read_torch

__all__ = [
    "ASSUMED",
    "LAYOUTS",
    "CanonicalCheckpoint",
    "Layout",
    "build_generator",
    "canonical_shapes",
    "from_canonical",
    "from_generator_document",
    "from_nvlabs",
    "from_nvlabs_discriminator",
    "from_nvlabs_discriminator_document",
    "from_nvlabs_document",
    "from_rosinality",
    "from_rosinality_document",
    "from_tensorflow_document",
    "generator_digest",
    "is_tensorflow",
    "plain_name",
    "read_pickle",
    "read_records",
    "read_torch",
    "to_metadata",
    "to_nvlabs",
    "to_nvlabs_discriminator",
    "to_rosinality",
    "to_rosinality_document",
]
