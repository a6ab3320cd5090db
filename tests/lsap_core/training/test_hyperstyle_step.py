"""Training HyperStyle, beside the published loop and against its own promises."""

import copy
import io
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lsap_core.errors import CheckpointError, ConfigError, ShapeError, TrainingDivergedError
from lsap_core.generators import Generator
from lsap_core.perceptual.features import FeatureDistance
from lsap_core.refinement.hyperstyle import HyperStyleRefiner, HyperStyleSettings
from lsap_core.refinement.hyperstyle_checkpoint import from_hyperstyle_document
from lsap_core.refinement.hyperstyle_networks import HyperNetwork, HyperStyleConfig
from lsap_core.refinement.refinement import Embedded
from lsap_core.training.hyperstyle_step import HyperStyleTraining, HyperStyleTrainingSettings

KEYS = Path(__file__).parents[2] / "reference" / "keys"
SHORT = HyperStyleTrainingSettings(num_passes=2, batch_size=3, learning_rate=1e-2)
PIXELS_ONLY = HyperStyleTrainingSettings(num_passes=2, l2_weight=0.0, lpips_weight=1.0, identity_weight=0.0)


class PixelError:
    """The squared difference of pixels as a perceptual distance that remembers its means."""

    def __init__(self) -> None:
        self.means: list[Tensor] = []

    def features(self, images: Tensor) -> list[Tensor]:
        """The images."""
        return [images]

    def distance(self, features: list[Tensor], target_features: list[Tensor]) -> Tensor:
        """One distance for each image."""
        distance = (features[0] - target_features[0]).square().mean(dim=(1, 2, 3))
        self.means.append(distance.detach().mean())
        return distance


# --- the published loop ----------------------------------------------------------------------------------------


@pytest.mark.slow
def test_two_passes_leave_the_published_gradients(
    reference: Callable[[str], Any], fill: Any, published_generator: Callable[[int], Generator]
) -> None:
    numbers, generator = reference("hyperstyle_training"), copy.deepcopy(published_generator(32)).double()
    keys = json.loads((KEYS / "hyperstyle_hypernet_all_convs_1024.json").read_text())["keys"]
    shapes = {name: tuple(shape) for name, shape in keys.items() if "hypernet" not in name and "blocks" not in name}
    for index, channels in ((7, 512), (10, 512)):
        head = f"refinement_blocks.{index}"
        for conv, (out_width, in_width) in enumerate([(256, 512), (256, 256), (256, 256), (512, 256)]):
            shapes |= {f"{head}.convs.{2 * conv}.weight": (out_width, in_width, 3, 3)}
            shapes |= {f"{head}.convs.{2 * conv}.bias": (out_width,)}
        shapes |= {f"{head}.output.0.weight": (3 * channels, 512, 1, 1), f"{head}.output.0.bias": (3 * channels,)}
    state = fill.fill_dict(shapes, "plain")
    for name in state:
        if name.startswith("body.") and name.endswith(".conv2.weight"):
            state[name] *= 0.25
        if ".output." in name and name.endswith(".weight"):
            state[name] *= 0.1
    document = {"state_dict": {f"hypernet.{name}": value for name, value in state.items()}}
    network = from_hyperstyle_document(
        document, generator_config=generator.config, input_size=(128, 128)
    ).network.double()
    images = torch.cat([fill.image_to_float(numbers[f"hyperstyle_dev_{name}"].numpy()) for name in "de"]).double()

    pixel_error = PixelError()
    _, seen = HyperStyleTraining(network, generator, pixel_error, None, PIXELS_ONLY).backward(
        images, numbers["w"].double()
    )
    numbers.check("losses", torch.stack(pixel_error.means))
    numbers.check("last_image_sub", seen[:, :, ::4, ::4])
    found = dict(network.named_parameters())
    gradients = [found[name].grad for name in NORMS_OF]
    numbers.check("gradient_norms", torch.stack([gradient.norm() for gradient in gradients if gradient is not None]))
    assert gradients[0] is not None
    numbers.check("gradient_conv1_sub", gradients[0][:, :, ::2, ::2])
    weight = found["heads.10.output.weight"].grad
    assert weight is not None
    numbers.check("gradient_output_10_sub", weight[::16, ::8, 0, 0])
    numbers.check("bn1_running_mean", network.backbone.bn1.running_mean)
    numbers.check("bn1_running_var", network.backbone.bn1.running_var)
    assert network.backbone.bn1.num_batches_tracked == 2


NORMS_OF = (
    "backbone.conv1.weight",
    "backbone.bn1.weight",
    "backbone.relu.weight",
    "backbone.body.7.conv1.weight",
    "backbone.body.15.bn2.bias",
    "heads.10.convs.0.weight",
    "heads.10.output.bias",
)


# --- a small training ------------------------------------------------------------------------------------------


@pytest.fixture
def make(small: Any) -> Callable[..., HyperStyleTraining]:
    """A training of a small network, before its first step; always the same."""

    def training(settings: HyperStyleTrainingSettings = SHORT, **changes: Any) -> HyperStyleTraining:
        generator, _, features = small.make_parts()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(2)
            network = HyperNetwork(HyperStyleConfig.for_generator(generator.config, backbone="small"))
        return HyperStyleTraining(
            network, generator, FeatureDistance(features), small.Identity(features), replace(settings, **changes)
        )

    return training


def batch(training: HyperStyleTraining, step: int) -> tuple[Tensor, Tensor]:
    """Images, and codes that do not quite reach them."""
    stream = torch.Generator().manual_seed(100 + step)
    config = training.generator.config
    with torch.no_grad():
        codes = training.generator.expand(training.generator.map(torch.randn(3, config.z_dim, generator=stream)))
        images = training.generator.synthesize(codes + 0.5 * torch.randn(codes.shape, generator=stream))
    return images.clamp(-1, 1), codes


def test_the_loss_falls(make: Callable[..., HyperStyleTraining]) -> None:
    training = make(learning_rate=0.1, num_passes=1, num_steps=40, decay_steps=10)
    images, codes = batch(training, 0)
    logged = [training.advance(images, codes) for _ in range(40)]
    assert set(logged[0]) == {"loss", "l2", "lpips", "identity", "gradient_norm"}
    assert logged[-1]["loss"] < 0.9 * logged[0]["loss"], (logged[0], logged[-1])
    assert training.step == 40
    assert training.ranger.param_groups[0]["lr"] == pytest.approx(0.01)  # the rate of the last step
    assert all(parameter.grad is None for parameter in training.generator.parameters())


def test_validation_is_what_the_refiner_does(make: Callable[..., HyperStyleTraining]) -> None:
    training = make()
    training.advance(*batch(training, 0))
    images, codes = batch(training, 1)
    found = training.validate(images, codes)
    settings = HyperStyleSettings(num_passes=2, backbone="small")
    refiner = HyperStyleRefiner(training.generator, network=training.network, settings=settings)
    state = refiner.start(Embedded(codes), images, (0, 1, 2))
    refiner.advance(state, images)
    reconstruction = refiner.finish(state).refined.synthesize()
    torch.testing.assert_close(found["l2"], (reconstruction - images).square().mean(dim=(1, 2, 3)))
    expected = found["l2"] + 0.8 * found["lpips"] + 0.1 * found["identity"]
    torch.testing.assert_close(found["loss"], expected)


def test_a_saved_training_goes_on_bit_for_bit(make: Callable[..., HyperStyleTraining]) -> None:
    training = make()
    for step in range(8):  # beyond Lookahead's first synchronization
        training.advance(*batch(training, step))
        if step == 3:
            file = io.BytesIO()
            torch.save(training.state_dict(), file)
    file.seek(0)
    again = make()
    again.load_state_dict(torch.load(file, weights_only=True))
    for step in range(4, 8):
        again.advance(*batch(again, step))
    for a, b in zip(training.network.state_dict().values(), again.network.state_dict().values(), strict=True):
        assert torch.equal(a, b)


def test_a_step_that_diverges_changes_nothing(make: Callable[..., HyperStyleTraining]) -> None:
    training = make()
    training.advance(*batch(training, 0))
    before = copy.deepcopy(training.network.state_dict())
    images, codes = batch(training, 1)
    images[1] = torch.nan
    with pytest.raises(TrainingDivergedError, match="step 1"):
        training.advance(images, codes)
    assert all(torch.equal(value, before[name]) for name, value in training.network.state_dict().items())
    assert training.step == 1
    training.advance(*batch(training, 1))


def test_what_does_not_fit_is_named(make: Callable[..., HyperStyleTraining], small: Any) -> None:
    training = make()
    images, codes = batch(training, 0)
    with pytest.raises(ShapeError, match=r"images are \[3, 3, 16, 32\]"):
        training.advance(images[:, :, :16], codes)
    with pytest.raises(ShapeError, match=r"codes are \[2, 8, 12\]; wanted \[3, 8, 12\]"):
        training.advance(images, codes[:2])
    with pytest.raises(ShapeError, match="2 images; wanted batch_size, 3"):
        training.advance(images[:2], codes[:2])
    with pytest.raises(CheckpointError, match="lacks network, ranger"):
        training.load_state_dict({"step": 0})
    parts = (training.network, training.generator, training.perceptual)
    with pytest.raises(ConfigError, match="without an identity network"):
        HyperStyleTraining(*parts, None, SHORT)
    other = replace(training.generator.config, content_box=(0, 16, 0, 32))
    with pytest.raises(ConfigError, match="was made for"):
        HyperStyleTraining(training.network, Generator(other), training.perceptual, None, PIXELS_ONLY)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_passes": 0}, "num_passes is 0"),
        ({"num_steps": 10, "decay_steps": 11}, "decay_steps is 11; wanted 0 to num_steps, 10"),
        ({"learning_rate": -1.0}, "learning_rate is -1"),
        ({"lpips_weight": -1.0}, "lpips_weight is -1"),
        ({"l2_weight": 0.0, "lpips_weight": 0.0, "identity_weight": 0.0}, "nothing would look"),
    ],
)
def test_settings_that_cannot_run_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        replace(SHORT, **changes)
