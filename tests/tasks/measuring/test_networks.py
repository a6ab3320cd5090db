"""The networks of an evaluation: which are known, which fit, and what they say of images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from lsap_core.errors import ConfigError, MissingWeightsError
from lsap_core.generators.config import GeneratorConfig
from lsap_core.images import from_uint8
from tasks.measuring.networks import EvaluationChoice, IdentityMeasure, load_evaluation_networks, load_judge
from tasks.weights.networks import NetworkChoice, load_networks, network_digest
from tasks.weights.published import TORCH_CACHE, Published

DIGITS = GeneratorConfig(32, (4, 4, 4, 4), image_channels=1)
CPU = torch.device("cpu")
EVERYTHING = EvaluationChoice(
    lpips=("digits-features", "digits-judge"), identity=("digits-judge", "digits-features"), judge="digits-judge"
)


def digits(count: int, seed: int = 0) -> Tensor:
    return from_uint8(np.random.default_rng(seed).integers(0, 256, (count, 32, 32, 1)).astype(np.uint8))


class FacesOfBrightImages:
    """Finds a face in every image that is bright; its embedding is the mean of the left and of the right half."""

    def embed(self, images: Tensor) -> tuple[Tensor, Tensor]:
        halves = torch.stack([half.mean(dim=(1, 2, 3)) for half in images.chunk(2, dim=3)], dim=1)
        is_found = halves.sum(dim=1) > 0
        return halves.where(is_found[:, None], torch.nan), is_found


def test_every_role_holds_its_networks_by_name() -> None:
    EVERYTHING.check(DIGITS)
    loaded = load_evaluation_networks(EVERYTHING, CPU)
    assert tuple(loaded["lpips"]) == EVERYTHING.lpips and tuple(loaded["identity"]) == EVERYTHING.identity
    assert [judge.name for judge in loaded["judge"].values()] == list(loaded["judge"]) == ["digits-judge"]
    assert load_evaluation_networks(EvaluationChoice(), CPU) == {"lpips": {}, "identity": {}, "judge": {}}


def test_networks_are_those_that_embedding_runs_report() -> None:
    one = load_evaluation_networks(EVERYTHING, CPU)
    other = load_networks(
        NetworkChoice("digits-features", "digits-judge", identity="digits-features", judge="digits-judge"), CPU
    )
    images, target = digits(3), digits(3, seed=1)
    with torch.no_grad():
        assert torch.equal(one["lpips"]["digits-judge"](images, target), other.metric_perceptual(images, target))
        similarity = one["identity"]["digits-features"](images, target)
        torch.testing.assert_close(similarity, other.identity(images, target))


def test_the_judge_embeds_and_tells_classes_apart() -> None:
    judge, images = load_judge("digits-judge", CPU), digits(4)
    with torch.no_grad():
        torch.testing.assert_close(judge.probabilities(images).sum(dim=1), torch.ones(4))
        embedded = judge.embed(images)
        similarity = IdentityMeasure(judge)(images, images.flip(0))
    wanted = torch.nn.functional.cosine_similarity(embedded, embedded.flip(0))
    torch.testing.assert_close(similarity, wanted)


def test_where_one_of_two_images_shows_no_face_there_is_no_similarity() -> None:
    bright, dark = torch.full((1, 1, 4, 4), 0.5), torch.full((1, 1, 4, 4), -0.5)
    images, target = torch.cat([bright, bright, dark, dark]), torch.cat([bright, dark, bright, dark])
    values = IdentityMeasure(FacesOfBrightImages())(images, target)
    assert values[0].item() == pytest.approx(1) and values[1:].isnan().all()


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ({"lpips": ("alex",)}, 'lpips "alex" is not known; wanted some of lpips-vgg, lpips-alex'),
        ({"identity": ("digits-judge", "face")}, 'identity "face" is not known; wanted some of arcface, moco, curric'),
        ({"judge": "lpips-alex"}, 'judge "lpips-alex" is not known'),
        ({"lpips": ("lpips-alex", "lpips-alex")}, "lpips is lpips-alex, lpips-alex; wanted every network once"),
    ],
)
def test_names_that_nobody_knows_are_refused(choice: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        EvaluationChoice(**choice)
    with pytest.raises(ConfigError, match='"lpips-alex" is not known'):
        load_judge("lpips-alex", CPU)


@pytest.mark.parametrize("name", ["lpips-vgg", "curricularface", "moco"])
def test_a_missing_network_is_told_before_any_work(name: str, tmp_path: Path) -> None:
    role = "lpips" if name.startswith("lpips") else "identity"
    choice = EvaluationChoice(**{role: (name,)}, published=Published(tmp_path))
    with pytest.raises(MissingWeightsError, match=f"{name} needs"):
        choice.check(DIGITS)


def test_a_network_for_other_images_is_refused() -> None:
    with pytest.raises(ConfigError, match="digits-judge looks at 1-channel images of 32 px"):
        EvaluationChoice(identity=("digits-judge",)).check(GeneratorConfig.config_f(256))


def test_the_numbers_depend_on_the_weights_of_every_network() -> None:
    digests = EVERYTHING.digests()
    assert digests == {name: network_digest(name, TORCH_CACHE) for name in ("digits-features", "digits-judge")}
