"""What a report is made from: the methods of a run, its rows, and the images to show."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pyarrow as pa


@dataclass(frozen=True)
class MethodInfo:
    """A method of the run.

    Attributes:
        name: as in the column `method` of the rows, such as "lsap_o_w".
        title: what the paper calls it, such as "LSAP_O-W".
        settings: its constants; `sncd_weight` and `mean_code_weight` say which methods align and which only shrink.
        base: name of the method that it adds something to, or None.
        encoder: name and digest of the encoder that gives codes or where they start, or None.
        is_optimization: it minimizes a loss for every image; an encoder has done that before.
    """

    name: str
    title: str
    settings: dict[str, Any]
    base: str | None
    encoder: str | None = None
    is_optimization: bool = True

    @property
    def is_aligned(self) -> bool:
        """SNCD is a part of its loss."""
        return bool(self.settings.get("sncd_weight", 0) > 0)

    @property
    def is_control(self) -> bool:
        """It shrinks codes toward the mean code and knows nothing of SNCD."""
        return bool(self.settings.get("mean_code_weight", 0) > 0 and not self.is_aligned)


GROUPS = {
    "worst": "Worst",
    "best": "Best",
    "random": "Random",
    "failed": "Failed with some methods",
    "other": "Further",
}
"""Why images are shown, in the order of the page, and what it is called there."""


@dataclass(frozen=True)
class Choice:
    """What the images to show were chosen by.

    Attributes:
        title: of the method whose LPIPS says which are best and worst; "" where no image was inverted.
        num_images: those that they were chosen among.
    """

    title: str
    num_images: int


@dataclass(frozen=True)
class ContactCell:
    """What one method made of one image: two PNG files; the difference is absolute, black where both agree."""

    reconstruction_png: bytes
    difference_png: bytes


@dataclass(frozen=True)
class ContactRow:
    """One image of the contact sheet; a method that is missing in `cells` did not invert it.

    Attributes:
        image_id: of it.
        original_png: a PNG file.
        cells: by method.
        group: why it is shown, a name of `GROUPS`.
    """

    image_id: str
    original_png: bytes
    cells: dict[str, ContactCell]
    group: str = "other"


@dataclass(frozen=True)
class LossParts:
    """What the loss of a method was made of at the last recorded step, as means over images.

    Attributes:
        num_images: how many.
        loss: mean of the loss itself.
        weights: multiplier of each term.
        parts: mean of each term times its multiplier; together they are the loss.
    """

    num_images: int
    loss: float
    weights: dict[str, float]
    parts: dict[str, float]


@dataclass(frozen=True)
class ReportData:
    """All that a report tells.

    Attributes:
        title: the headline.
        created: UTC time, ISO 8601.
        archive_url: where the archive is.
        config_yaml: the configuration of the run.
        domain: name of the domain.
        generator: name, digest, size (height, width), num_ws, w_dim, image_channels.
        perceptual: the network in the loss, of the column `lpips`.
        judge: a network that no method has seen, of the column `lpips_judge`, or None.
        identity: the network of the column `identity_similarity`, or None.
        methods: in the order they are shown.
        rows: table in ROW_SCHEMA; where an image has several rows of one method, the last one counts.
        references: SNCD of codes whose alignment is known, by printed label.
        contact: the images to show, group by group.
        choice: what they were chosen by.
        losses: what the loss of each method that has one was made of, by name.
        summary: wall_seconds, images_per_second, num_workers, device, commit, versions.
        locations: what lies where, by label.
    """

    title: str
    created: str
    archive_url: str
    config_yaml: str
    domain: str
    generator: dict[str, Any]
    perceptual: str
    judge: str | None
    identity: str | None
    methods: tuple[MethodInfo, ...]
    rows: pa.Table
    references: dict[str, float]
    contact: tuple[ContactRow, ...]
    choice: Choice
    losses: dict[str, LossParts]
    summary: dict[str, Any]
    locations: dict[str, str]

    @property
    def metric_labels(self) -> dict[str, str]:
        """The compared columns that the domain has networks for, as they are named in sentences."""
        labels = {"mse": "MSE", "lpips": f"LPIPS [{self.perceptual}]", "sncd": "SNCD"}
        if self.judge is not None:
            labels["lpips_judge"] = f"LPIPS [{self.judge}]"
        if self.identity is not None:
            labels["identity_similarity"] = "identity similarity"
        return labels
