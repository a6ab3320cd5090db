"""Edits built for one generator and the codes of an archive's methods, as workers need them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import torch
from torch import Tensor

from lsap_archive import Archive, open_archive
from lsap_core.editing import Edit
from lsap_core.generators.config import GeneratorConfig
from tasks.editing.spec import EditSpec, build_edit

MOST_KEPT = 64


class EditBuilder:
    """Builds edits for a generator; each is built once unless it depends on the images."""

    def __init__(self, config: GeneratorConfig, generator_digest: str, *, archive: str):
        """For codes of an archive, which is opened by the first edit that looks up other images in it."""
        self._config = config
        self._digest = generator_digest
        self._url = archive
        self._built: dict[tuple[str, float | None], Edit] = {}

    def build(
        self, spec: EditSpec, strength: float | None, *, method_digest: str, image_ids: Sequence[str] = ()
    ) -> Edit:
        """The edit at a strength, None for its own.

        Args:
            spec: the edit.
            strength: calibrated, or None.
            method_digest: of the method whose codes are edited; codes of other images are its own.
            image_ids: the images that will be edited.
        """
        key = spec.digest, strength
        if not spec.needs_images and key in self._built:
            return self._built[key]

        def codes_of(others: Sequence[str]) -> Tensor:
            return torch.from_numpy(self._archive.codes(others, method_digest))

        edit = build_edit(
            spec,
            config=self._config,
            generator_digest=self._digest,
            strength=strength,
            codes_of=codes_of,
            image_ids=image_ids,
        )
        if not spec.needs_images:
            if len(self._built) >= MOST_KEPT:  # a calibration builds one for every strength that it tries
                self._built.clear()
            self._built[key] = edit
        return edit

    @cached_property
    def _archive(self) -> Archive:
        return open_archive(self._url)
