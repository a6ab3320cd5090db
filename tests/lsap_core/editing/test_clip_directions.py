"""Directions of texts in S: which channels they move, how far, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from lsap_core.editing import channel_deviations, direction_of_text
from lsap_core.errors import ConfigError, ShapeError
from lsap_core.generators import Generator, GeneratorConfig
from lsap_core.generators.generator import style_widths
from lsap_core.spaces.styles import style_positions

CONFIG = GeneratorConfig(16, (6, 5, 4), z_dim=4, w_dim=7, num_mapping_layers=2)
POSITIONS = style_positions(CONFIG, "conv")
CHANNELS = sum(style_widths(CONFIG)[at] for at in POSITIONS)


def of_text(**changes: Any) -> Any:
    effects = torch.zeros(CHANNELS, 3)
    effects[0, 0], effects[1, 0], effects[6 + 2, 0], effects[-1, 1] = 0.4, 0.05, -0.2, 0.9
    given = {
        "effects": effects,
        "text": torch.tensor([5.0, 0.0, 0.0]),
        "beta": 0.1,
        "deviations": torch.arange(1.0, CHANNELS + 1),
        "name": "old",
        "config": CONFIG,
        **changes,
    }
    return direction_of_text(given.pop("effects"), given.pop("text"), **given)


def test_channels_above_beta_move_by_their_relevance_in_deviations() -> None:
    vectors = of_text().vectors
    assert tuple(vectors) == POSITIONS[:2]
    assert vectors[POSITIONS[0]].tolist() == [1.0, 0, 0, 0, 0, 0]
    assert vectors[POSITIONS[1]].tolist() == pytest.approx([0, 0, -0.5 * 9, 0, 0, 0])
    assert of_text(beta=0.0).vectors[POSITIONS[0]][1].item() == pytest.approx(0.125 * 2)


def test_published_generators_have_as_many_channels_as_published_effects() -> None:
    """6048 at 1024 pixels: 17 convolutions without ToRGB layers."""
    faces = GeneratorConfig.config_f(1024)
    with pytest.raises(ShapeError, match=r"6048 channels in its 17 convolutions"):
        of_text(config=faces)


def test_what_gives_no_direction_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"beta is 0\.5, and the most relevant channel has 0\.4"):
        of_text(beta=0.5)
    with pytest.raises(ConfigError, match="the text is all 0"):
        of_text(text=torch.zeros(3))
    with pytest.raises(ShapeError, match="as wide as the effects"):
        of_text(text=torch.ones(4))


def test_deviations_do_not_depend_on_how_codes_come() -> None:
    generator = Generator(CONFIG).freeze()
    codes = torch.randn(40, 7, generator=torch.Generator().manual_seed(0))
    styles = generator.styles(codes)
    wanted = torch.cat([styles[at] for at in POSITIONS], dim=1).std(dim=0, correction=0)
    torch.testing.assert_close(channel_deviations(generator, codes.split(7)), wanted)
    with pytest.raises(ConfigError, match="at least 2"):
        channel_deviations(generator, codes[:1].split(1))
