"""The part of a worker that measures attributes of synthetic and of edited images."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from lsap_archive import RunReader
from lsap_core.editing import style_shift
from lsap_core.images import quantize
from tasks.archived.rendering import Renderer, RunPart
from tasks.editing.builder import EditBuilder
from tasks.editing.calibration import EditedPart, Part, SyntheticPart, Values
from tasks.measuring.attributes import AnyAttribute, load_attribute
from tasks.weights.published import Published


class Calibrator:
    """Measures an attribute of the images of a part, batch by batch; the worker hears of each batch."""

    def __init__(
        self,
        renderer: Renderer,
        builder: EditBuilder,
        *,
        archive: str,
        batch_size: int,
        published: Published,
        advance: Callable[[int], None] = lambda num_images: None,
    ):
        self.renderer = renderer
        self.device = renderer.generator.mapping.w_avg.device
        self.builder = builder
        self.archive = archive
        self.batch_size = batch_size
        self.published = published
        self.advance = advance
        self._attributes: dict[str, AnyAttribute] = {}
        self._rows: dict[tuple[str, int, int], RunPart] = {}  # those of the last part: searches come back to them

    def measure(self, part: Part) -> Values:
        """The attribute of each image; None where it cannot be measured.

        Raises:
            ConfigError: no such attribute.
        """
        attribute = self._attribute(part.attribute)
        values: Values = []
        for images in self._synthetic(part) if isinstance(part, SyntheticPart) else self._edited(part):
            found = attribute.measure(quantize(images)).double().tolist()
            values += [value if math.isfinite(value) else None for value in found]
            self.advance(len(images))
        return values

    @torch.no_grad()
    def _synthetic(self, part: SyntheticPart) -> Iterator[Tensor]:
        generator, options = self.renderer.generator, part.options
        random = torch.Generator().manual_seed(options.seed)  # all are drawn: the same whatever the parts are
        z = torch.randn(options.num_synthetic, generator.config.z_dim, generator=random)
        for batch in z[part.start : part.stop].split(self.batch_size):
            yield generator.synthesize(generator.map(batch.to(self.device)))

    def _edited(self, part: EditedPart) -> Iterator[Tensor]:
        rows = self._rows_of(part)
        method_digest = rows.reader.manifest.method_digest
        for start in range(0, part.num_images, self.batch_size):
            places = part.places[start : start + self.batch_size]
            codes, shift = rows.codes[list(places)], None
            if part.strength is not None:
                edit = self.builder.build(part.spec, part.strength, method_digest=method_digest)
                codes, shift = edit(codes), style_shift(edit, codes)
            yield rows.stored(self.renderer, places).render(codes, shift)

    def _rows_of(self, part: EditedPart) -> RunPart:
        key = part.run_id, part.first, part.last
        if key not in self._rows:
            rows = RunPart(RunReader.open(self.archive, part.run_id), range(part.first, part.last))
            self._rows = {key: rows}
        return self._rows[key]

    def _attribute(self, name: str) -> AnyAttribute:
        if name not in self._attributes:
            self._attributes[name] = load_attribute(name, device=self.device, published=self.published)
        return self._attributes[name]
