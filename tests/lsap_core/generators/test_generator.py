"""Images, styles and features of whole generators, beside those of the published programs."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lsap_core.errors import ConfigError, ShapeError
from lsap_core.generators import FeatureState, Generator, GeneratorConfig
from lsap_core.generators.checkpoints import build_generator, from_nvlabs
from lsap_core.generators.generator import conv_position, style_widths, to_rgb_position

ReferenceByName = Callable[[str], Any]
GeneratorOfSize = Callable[[int], Generator]
Numbers = Callable[..., Tensor]


# --- the numbers of the published programs ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("published_in_both_forms", "resolution"),
    [("activations", 32), ("activations", 64), ("weights", 32)],
    indirect=["published_in_both_forms"],
)
class TestPublishedImages:
    """rosinality/stylegan2-pytorch, in both forms of modulation; features below are of both forms and sizes."""

    def test_image_of_w_codes(
        self, resolution: int, reference: ReferenceByName, published_in_both_forms: GeneratorOfSize
    ) -> None:
        expected = reference(f"gen{resolution}_image")
        expected.check("img_w", published_in_both_forms(resolution).synthesize(expected["w"]))

    def test_image_of_w_plus_codes(
        self, resolution: int, reference: ReferenceByName, published_in_both_forms: GeneratorOfSize
    ) -> None:
        expected = reference(f"gen{resolution}_image")
        expected.check("img_wplus", published_in_both_forms(resolution).synthesize(expected["wplus"]))

    def test_image_with_given_noise_maps(
        self, resolution: int, reference: ReferenceByName, published_in_both_forms: GeneratorOfSize
    ) -> None:
        expected = reference(f"gen{resolution}_image")
        image = published_in_both_forms(resolution).synthesize(expected["w"], noise=expected.noise())
        expected.check("img_w_noise", image)

    def test_image_of_two_mixed_codes(
        self, resolution: int, reference: ReferenceByName, published_in_both_forms: GeneratorOfSize
    ) -> None:
        expected = reference(f"gen{resolution}_image")
        generator = published_in_both_forms(resolution)
        mixed = generator.expand(expected["w"]).clone()
        mixed[:, int(expected["inject_index"]) :] = expected["z"][:, None]  # the array z, read as a W code
        expected.check("img_mix", generator.synthesize(mixed))


def test_published_image_without_noise(reference: ReferenceByName, published_in_both_forms: GeneratorOfSize) -> None:
    expected = reference("gen32_image")
    image = published_in_both_forms(32).synthesize(expected["wplus"], noise="none")
    expected.check("img_wplus_nonoise", image)


def test_published_image_of_a_truncated_code(
    reference: ReferenceByName, published_in_both_forms: GeneratorOfSize
) -> None:
    expected = reference("gen32_image")
    generator = published_in_both_forms(32)
    center = expected["trunc_latent"]
    w = center + expected["psi"] * (generator.map(expected["z"]) - center)
    expected.check("lat_z_trunc", w)
    expected.check("img_z_trunc", generator.synthesize(w))


@pytest.mark.parametrize("resolution", [32, 64])
def test_published_style_vectors_in_execution_order(
    resolution: int, reference: ReferenceByName, published_generator: GeneratorOfSize
) -> None:
    expected = reference(f"gen{resolution}_sspace")
    generator = published_generator(resolution)
    styles = generator.styles(expected["wplus"])
    assert len(styles) == generator.config.num_convs + generator.config.num_to_rgbs
    for conv in range(generator.config.num_convs):
        expected.check(f"conv_{conv:02d}", styles[conv_position(conv)])
    for to_rgb in range(generator.config.num_to_rgbs):
        expected.check(f"rgb_{to_rgb:02d}", styles[to_rgb_position(to_rgb)])


@pytest.mark.parametrize("resolution", [32, 64])
def test_published_features_after_every_layer(
    resolution: int, reference: ReferenceByName, published_in_both_forms: GeneratorOfSize
) -> None:
    expected = reference(f"gen{resolution}_features")
    generator = published_in_both_forms(resolution)
    config = generator.config
    result = generator.synthesize_styles(generator.styles(expected["wplus"]), collect=range(config.num_convs))
    assert list(result.states) == list(range(config.num_convs))
    for conv, state in result.states.items():
        features = state.features
        expected.check(f"featmean_{conv}", features.mean(dim=(2, 3)))
        expected.check(f"featstd_{conv}", features.std(dim=(2, 3), correction=0))
        if f"feat_{conv}" in expected.outputs:
            stored = expected.expected(f"feat_{conv}")
            expected.check(f"feat_{conv}", features[:, :: features.shape[1] // stored.shape[1]])
    assert len(result.rgbs) == config.num_to_rgbs
    for to_rgb, rgb in enumerate(result.rgbs):
        expected.check(f"skip_{to_rgb}", rgb)


UNDO = {
    "same": lambda tensor: tensor,
    "add a leading dimension of 1": lambda tensor: tensor[0],
    "add two leading dimensions of 1": lambda tensor: tensor[0, 0],
    "scalar to shape [1]": lambda tensor: tensor[0],
    "[3] to [1, 3, 1, 1]": lambda tensor: tensor.flatten(),
}


@pytest.fixture(scope="module")
def nvlabs_state(filled: Callable[..., dict[str, Tensor]]) -> Callable[[int], dict[str, Tensor]]:
    """Weights under NVlabs' names, renamed by the published table of names and not by our own conversion."""
    table = json.loads((Path(__file__).parents[2] / "reference" / "keys" / "nvlabs_to_rosinality.json").read_text())

    def get(resolution: int) -> dict[str, Tensor]:
        state = filled(f"rosinality_generator_{resolution}", "stylegan2")
        return {
            rule["nvlabs"]: UNDO[rule["change"]](state[rule["rosinality"]])
            for rule in table["rules"]
            if rule["rosinality"] in state
        }

    return get


@pytest.mark.parametrize("resolution", [32, 64])
def test_images_of_the_nvlabs_program_for_weights_under_its_names(
    resolution: int, reference: ReferenceByName, nvlabs_state: Callable[[int], dict[str, Tensor]]
) -> None:
    expected = reference(f"nvlabs{resolution}_image")
    checkpoint = from_nvlabs(nvlabs_state(resolution) | {"mapping.w_avg": expected["w_avg"]})
    generator = build_generator(checkpoint).freeze()
    w = generator.map(expected["z"])
    expected.check("w", w)
    expected.check("img_const", generator.synthesize(w))
    expected.check("img_wplus_const", generator.synthesize(expected["wplus"]))
    assert torch.equal(generator.mapping.w_avg, expected["w_avg"])
    assert generator.has_w_avg


def test_nvlabs_truncates_only_the_rows_below_its_cutoff(
    reference: ReferenceByName, published_generator: GeneratorOfSize
) -> None:
    expected = reference("nvlabs32_image")
    generator = published_generator(32)
    w_plus = generator.expand(generator.map(expected["z"])).clone()
    expected.check("img_none", generator.synthesize(w_plus, noise="none"))
    cutoff, w_avg = int(expected["cutoff"]), expected["w_avg"]
    w_plus[:, :cutoff] = w_avg + expected["psi"] * (w_plus[:, :cutoff] - w_avg)
    expected.check("ws_trunc", w_plus)


# --- entries in the middle -------------------------------------------------------------------------------------


@pytest.mark.parametrize("conv", range(7))
def test_synthesis_goes_on_from_every_collected_state_to_the_same_image(
    conv: int, reference: ReferenceByName, published_in_both_forms: GeneratorOfSize
) -> None:
    generator = published_in_both_forms(32)
    styles = generator.styles(reference("gen32_features")["wplus"])
    whole = generator.synthesize_styles(styles, collect=[conv])
    assert torch.equal(generator.synthesize_styles(styles, start=whole.states[conv]).image, whole.image)


def test_a_state_replaces_everything_before_it(random_generator: Callable[..., Generator], numbers: Numbers) -> None:
    generator = random_generator()
    styles = generator.styles(numbers(2, 8, 24))
    state = generator.synthesize_styles(styles, collect=[3]).states[3]
    before = conv_position(4)
    others = [torch.zeros_like(style) for style in styles[:before]] + list(styles[before:])
    expected = generator.synthesize_styles(styles, start=state).image
    assert torch.equal(generator.synthesize_styles(others, start=state).image, expected)
    brighter = FeatureState(3, state.features + 1, state.rgb)
    assert not torch.equal(generator.synthesize_styles(styles, start=brighter).image, expected)


@pytest.mark.parametrize("conv", (0, 2, 4))
def test_synthesis_stops_after_a_block_and_goes_on_from_its_end(
    conv: int, random_generator: Callable[..., Generator], numbers: Numbers
) -> None:
    generator = random_generator()
    styles = generator.styles(numbers(2, 8, 24))
    whole = generator.synthesize_styles(styles, collect=[conv])
    first = generator.synthesize_styles(styles, collect=[conv], until=conv)
    assert torch.equal(first.image, whole.rgbs[conv // 2])
    end = first.block_end(conv)
    assert torch.equal(end.features, whole.states[conv].features)
    assert torch.equal(generator.synthesize_styles(styles, start=end).image, whole.image)
    moved = replace(end, features=end.features + 1)
    # What is put there is seen by later layers alone: after the block it is another picture than before its ToRGB.
    after = generator.synthesize_styles(styles, start=moved).image
    before = generator.synthesize_styles(styles, start=replace(whole.states[conv], features=moved.features)).image
    assert not torch.equal(after, whole.image) and not torch.equal(after, before)


def test_nothing_is_kept_unless_asked_for(random_generator: Callable[..., Generator], numbers: Numbers) -> None:
    generator = random_generator()
    result = generator.synthesize_styles(generator.styles(numbers(1, 24)))
    assert result.states == {} and result.rgbs == ()


# --- properties of a small generator ---------------------------------------------------------------------------


def test_w_codes_equal_their_repetition_in_w_plus(random_generator: Callable[..., Generator], numbers: Numbers) -> None:
    generator, w = random_generator(), numbers(2, 24)
    repeated = w[:, None].repeat(1, 8, 1)
    assert torch.equal(generator.synthesize(w), generator.synthesize(repeated))
    assert all(torch.equal(a, b) for a, b in zip(generator.styles(w), generator.styles(repeated), strict=True))


def test_convolution_k_reads_row_k_and_to_rgb_j_reads_row_2j_plus_1(
    random_generator: Callable[..., Generator], numbers: Numbers
) -> None:
    generator, w_plus = random_generator(), numbers(1, 8, 24)
    before = generator.styles(w_plus)
    for row in range(8):
        changed = w_plus.clone()
        changed[:, row] += 1
        moved = {
            index
            for index, (a, b) in enumerate(zip(before, generator.styles(changed), strict=True))
            if not torch.equal(a, b)
        }
        readers = {conv_position(row)} if row < 7 else set()
        assert moved == readers | ({to_rgb_position(row // 2)} if row % 2 else set())


def test_constant_noise_is_that_of_the_checkpoint(random_generator: Callable[..., Generator], numbers: Numbers) -> None:
    generator, w = random_generator(), numbers(2, 24)
    own = [layer.noise_const[None, None] for layer in generator.synthesis.conv_layers()]
    assert torch.equal(generator.synthesize(w), generator.synthesize(w, noise=own))


def test_no_noise_equals_zero_maps_and_differs_from_constant_noise(
    random_generator: Callable[..., Generator], numbers: Numbers
) -> None:
    generator, w = random_generator(), numbers(2, 24)
    zeros = [torch.zeros(1, 1, *size) for size in generator.config.noise_sizes]
    assert torch.equal(generator.synthesize(w, noise="none"), generator.synthesize(w, noise=zeros))
    assert not torch.allclose(generator.synthesize(w, noise="none"), generator.synthesize(w))


def test_each_image_takes_its_own_noise_maps(random_generator: Callable[..., Generator], numbers: Numbers) -> None:
    generator, w = random_generator(dtype=torch.float64), numbers(1, 24, dtype=torch.float64)
    maps = [
        numbers(2, 1, *size, seed=index, dtype=torch.float64) for index, size in enumerate(generator.config.noise_sizes)
    ]
    both = generator.synthesize(w.expand(2, -1), noise=maps)
    for row in range(2):
        alone = generator.synthesize(w, noise=[each[row : row + 1] for each in maps])
        torch.testing.assert_close(both[row : row + 1], alone, rtol=0, atol=1e-12)
    assert not torch.allclose(both[0], both[1])


@pytest.mark.parametrize("modulation", ["activations", "weights"])
def test_freezing_changes_nothing(
    modulation: str, random_generator: Callable[..., Generator], numbers: Numbers
) -> None:
    generator, w_plus = random_generator(), numbers(2, 8, 24)
    generator.modulation = modulation
    before = generator.synthesize(w_plus)
    assert torch.equal(generator.freeze().synthesize(w_plus), before)


@pytest.mark.parametrize("modulation", ["activations", "weights"])
def test_a_frozen_generator_may_be_cast(
    modulation: str, random_generator: Callable[..., Generator], numbers: Numbers
) -> None:
    w_plus = numbers(2, 8, 24, dtype=torch.float64)
    frozen, fresh = random_generator().freeze().double(), random_generator(dtype=torch.float64)
    frozen.modulation = fresh.modulation = modulation
    torch.testing.assert_close(frozen.synthesize(w_plus), fresh.synthesize(w_plus), rtol=0, atol=1e-12)
    back = frozen.float().synthesize(w_plus.float())
    torch.testing.assert_close(back, random_generator().synthesize(w_plus.float()), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("frozen", [False, True])
def test_both_forms_have_the_same_gradients(
    frozen: bool, random_generator: Callable[..., Generator], numbers: Numbers
) -> None:
    generator = random_generator(dtype=torch.float64)
    if frozen:
        generator.freeze()
    direction = numbers(2, 3, 32, 32, seed=9, dtype=torch.float64)

    def gradients(modulation: str) -> list[Tensor]:
        generator.modulation = modulation
        styles = [style.detach().requires_grad_() for style in generator.styles(numbers(2, 8, 24).double())]
        noise = [
            numbers(2, 1, *size, seed=index, dtype=torch.float64).requires_grad_()
            for index, size in enumerate(generator.config.noise_sizes)
        ]
        image = generator.synthesize_styles(styles, noise=noise).image
        return list(torch.autograd.grad((image * direction).sum(), [*styles, *noise]))

    shared, per_image = gradients("activations"), gradients("weights")
    assert len(shared) == 11 + 7
    for a, b in zip(shared, per_image, strict=True):
        assert a.abs().max() > 0
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11)


def test_both_forms_train_the_same_weights(random_generator: Callable[..., Generator], numbers: Numbers) -> None:
    direction = numbers(2, 3, 32, 32, seed=9, dtype=torch.float64)
    gradients = []
    for form in ("activations", "weights"):
        generator = random_generator(dtype=torch.float64)
        generator.modulation = form
        (generator.synthesize(numbers(2, 24).double()) * direction).sum().backward()
        gradients.append({name: parameter.grad for name, parameter in generator.synthesis.named_parameters()})
    assert all(gradient is not None for gradient in gradients[0].values())
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("modulation", ["activations", "weights"])
def test_an_image_does_not_depend_on_the_others_of_its_batch(
    modulation: str, random_generator: Callable[..., Generator], numbers: Numbers
) -> None:
    generator, w_plus = random_generator(dtype=torch.float64), numbers(3, 8, 24, dtype=torch.float64)
    generator.modulation = modulation
    together = generator.synthesize(w_plus)
    for row in range(3):
        alone = generator.synthesize(w_plus[row : row + 1])
        torch.testing.assert_close(together[row : row + 1], alone, rtol=0, atol=1e-12)


@pytest.mark.parametrize("modulation", ["activations", "weights"])
def test_a_broken_code_breaks_no_other_image(
    modulation: str, random_generator: Callable[..., Generator], numbers: Numbers
) -> None:
    generator, w_plus = random_generator(), numbers(3, 8, 24)
    generator.modulation = modulation
    whole = generator.synthesize(w_plus)
    w_plus[1] = torch.nan
    broken = generator.synthesize(w_plus)
    assert broken[1].isnan().all()
    assert torch.equal(broken[[0, 2]], whole[[0, 2]])


def test_a_grayscale_generator_is_one_channel_of_a_colour_one(
    random_generator: Callable[..., Generator], small_config: GeneratorConfig, numbers: Numbers
) -> None:
    colour, w_plus = random_generator(), numbers(2, 8, 24)
    gray = Generator(replace(small_config, image_channels=1))
    state = colour.state_dict()
    for name in state:
        if name.startswith("synthesis.to_rgbs.") and "affine" not in name:
            state[name] = state[name][1:2]
    gray.load_state_dict(state)
    image = gray.synthesize(w_plus)
    assert image.shape == (2, 1, 32, 32)
    torch.testing.assert_close(image, colour.synthesize(w_plus)[:, 1:2], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("modulation", ["activations", "weights"])
def test_a_clamp_bounds_every_feature_map_and_every_rgb_contribution(
    modulation: str, random_generator: Callable[..., Generator], small_config: GeneratorConfig, numbers: Numbers
) -> None:
    generator = random_generator(replace(small_config, conv_clamp=0.5))
    generator.modulation = modulation
    result = generator.synthesize_styles(generator.styles(numbers(2, 8, 24)), collect=range(7))
    for state in result.states.values():
        assert state.features.abs().max() == 0.5
    assert result.rgbs[0].abs().max() == 0.5
    assert not torch.allclose(result.image, random_generator().synthesize(numbers(2, 8, 24)))


def test_a_clamp_that_nothing_reaches_changes_nothing(
    random_generator: Callable[..., Generator], small_config: GeneratorConfig, numbers: Numbers
) -> None:
    clamped = random_generator(replace(small_config, conv_clamp=256.0))
    assert torch.equal(clamped.synthesize(numbers(2, 24)), random_generator().synthesize(numbers(2, 24)))


def test_images_of_every_size_have_the_size_of_the_configuration(random_generator: Callable[..., Generator]) -> None:
    for resolution in (8, 16, 128):
        channels = (6, 5, 4, 3, 2, 2)[: resolution.bit_length() - 2]
        generator = random_generator(GeneratorConfig(resolution, channels, z_dim=4, w_dim=7, num_mapping_layers=1))
        assert generator.synthesize(generator.map(torch.ones(2, 4))).shape == (2, 3, resolution, resolution)


def test_the_mean_code_is_unknown_until_a_checkpoint_says_it(random_generator: Callable[..., Generator]) -> None:
    generator = random_generator()
    assert not generator.has_w_avg
    generator.mapping.w_avg.zero_()
    assert generator.has_w_avg


# --- what is refused -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def generator(random_generator: Callable[..., Generator]) -> Generator:
    return random_generator().freeze()


@pytest.mark.parametrize("shape", [(2, 15), (16,), (2, 1, 16)])
def test_z_of_another_shape_is_refused(shape: tuple[int, ...], generator: Generator) -> None:
    with pytest.raises(ShapeError) as caught:
        generator.map(torch.zeros(shape))
    assert str(list(shape)) in str(caught.value) and "[N, 16]" in str(caught.value)


@pytest.mark.parametrize("shape", [(24,), (2, 23), (2, 7, 24), (2, 8, 23), (2, 8, 24, 1)])
def test_codes_of_another_shape_are_refused(shape: tuple[int, ...], generator: Generator) -> None:
    with pytest.raises(ShapeError) as caught:
        generator.synthesize(torch.zeros(shape))
    assert str(list(shape)) in str(caught.value)
    assert "W [N, 24] or W+ [N, 8, 24]" in str(caught.value)


def test_too_few_style_vectors_are_refused(generator: Generator) -> None:
    widths = list(style_widths(generator.config))
    with pytest.raises(ShapeError) as caught:
        generator.synthesize_styles([torch.ones(1, width) for width in widths[:-1]])
    assert str(widths[:-1]) in str(caught.value) and str(widths) in str(caught.value)


def test_style_vectors_in_another_order_are_refused(generator: Generator) -> None:
    widths = list(style_widths(generator.config))[::-1]
    with pytest.raises(ShapeError) as caught:
        generator.synthesize_styles([torch.ones(1, width) for width in widths])
    assert str(widths) in str(caught.value) and str(widths[::-1]) in str(caught.value)


def test_too_few_noise_maps_are_refused(generator: Generator) -> None:
    maps = [torch.zeros(1, 1, *size) for size in generator.config.noise_sizes[:-1]]
    with pytest.raises(ShapeError, match="6 noise maps; this generator wants 7"):
        generator.synthesize(torch.zeros(1, 24), noise=maps)


@pytest.mark.parametrize("shape", [(1, 1, 16, 16), (1, 3, 8, 8), (8, 8), (1, 1, 8, 16)])
def test_a_noise_map_of_another_shape_is_refused(shape: tuple[int, ...], generator: Generator) -> None:
    maps = [torch.zeros(1, 1, *size) for size in generator.config.noise_sizes]
    maps[2] = torch.zeros(shape)
    with pytest.raises(ShapeError) as caught:
        generator.synthesize(torch.zeros(1, 24), noise=maps)
    assert f"noise map 2 is {list(shape)}; wanted [N, 1, 8, 8]" in str(caught.value)


def test_another_noise_mode_is_refused(generator: Generator) -> None:
    with pytest.raises(ConfigError, match='noise is "random"; wanted "constant", "none" or a list of maps'):
        generator.synthesize(torch.zeros(1, 24), noise="random")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("start", "message"),
    [
        (FeatureState(7, torch.zeros(1, 8, 32, 32), torch.zeros(1, 3, 32, 32)), "convolution 7; wanted 0 to 6"),
        (FeatureState(-1, torch.zeros(1, 20, 4, 4), None), "convolution -1; wanted 0 to 6"),
        (
            FeatureState(1, torch.zeros(1, 20, 8, 8), torch.zeros(1, 3, 4, 4)),
            r"wanted \['N', 16, 8, 8\]",
        ),
        (FeatureState(1, torch.zeros(1, 16, 8, 8), None), "an RGB sum belongs to every start"),
        (FeatureState(0, torch.zeros(1, 20, 4, 4), torch.zeros(1, 3, 4, 4)), "an RGB sum belongs to every start"),
        (FeatureState(0, torch.zeros(1, 20, 4, 4), None, is_in_rgb=True), "an RGB sum belongs to every start"),
        (
            FeatureState(1, torch.zeros(1, 16, 8, 8), torch.zeros(1, 3, 4, 4), is_in_rgb=True),
            "no ToRGB reads the features of convolution 1",
        ),
    ],
)
def test_a_start_that_is_no_state_of_this_generator_is_refused(
    start: FeatureState, message: str, generator: Generator
) -> None:
    with pytest.raises(ShapeError, match=message):
        generator.synthesize_styles(generator.styles(torch.zeros(1, 24)), start=start)
