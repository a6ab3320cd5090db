"""Fréchet distances from shards, against two other computations of the same quantity."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

from domains.making.quality import frechet_distance
from lsap_core.errors import CheckpointError, ConfigError, MissingWeightsError
from lsap_core.generators.config import GeneratorConfig
from lsap_core.images import from_uint8
from tasks.measuring.frechet import INCEPTION_FILE, FrechetNetwork, FrechetState, check_frechet, load_frechet
from tasks.weights.published import TORCH_CACHE, Published

DIGITS = GeneratorConfig(32, (4, 4, 4, 4), image_channels=1)
CPU = torch.device("cpu")


def pixels_as_features(width: int, digest: str = "d") -> FrechetNetwork:
    network = FrechetNetwork("pixels", digest, width, None)
    network.forward = lambda images: images.flatten(1)  # type: ignore[method-assign]
    return network


def digits(count: int, seed: int) -> Tensor:
    return from_uint8(np.random.default_rng(seed).integers(0, 256, (count, 32, 32, 1)).astype(np.uint8))


@pytest.fixture(scope="module")
def judge() -> FrechetNetwork:
    return load_frechet("digits-judge", TORCH_CACHE, CPU)


def state_of(network: FrechetNetwork, images: Tensor, originals: Tensor) -> FrechetState:
    state = FrechetState(network)
    state.update(images, originals)
    return state


def test_normal_numbers_have_the_distance_of_the_closed_form() -> None:
    """(m - m')^2 + (s - s')^2 of one number, exactly that of the samples' own moments."""
    stream = np.random.default_rng(0)
    a, b = stream.normal(0.3, 0.2, 500), stream.normal(-0.1, 0.5, 400)
    images, originals = (torch.from_numpy(values).reshape(-1, 1, 1, 1) for values in (a, b))
    found = state_of(pixels_as_features(1), images, originals).summary()
    wanted = (a.mean() - b.mean()) ** 2 + (a.std(ddof=1) - b.std(ddof=1)) ** 2
    assert found["value"] == pytest.approx(wanted, rel=1e-9)
    assert (found["num_images"], found["num_originals"]) == (500, 400)


def test_the_judges_distance_is_that_of_another_implementation(judge: FrechetNetwork) -> None:
    images, originals = digits(150, 0) * 0.5, digits(130, 1)
    features = [judge(batch).double().numpy() for batch in (images, originals)]
    found = state_of(judge, images, originals).summary()
    assert found["value"] == pytest.approx(frechet_distance(*features), rel=1e-6)
    assert (found["name"], found["network"]) == ("FD [digits-judge]", "digits-judge")  # other features are no FID
    assert found["value"] > 1


def test_shards_in_any_order_and_through_bytes_are_the_whole(judge: FrechetNetwork) -> None:
    images, originals = digits(90, 2) * 0.7, digits(90, 3)
    whole = state_of(judge, images, originals).summary()
    parts = [
        state_of(judge, images[rows], originals[rows]).to_bytes() for rows in (slice(0, 1), slice(1, 40), slice(40, 90))
    ]
    for order in itertools.permutations(parts):
        first, second, third = (FrechetState.from_bytes(part) for part in order)
        for merged in (first.merge(second).merge(third), first.merge(second.merge(third))):
            found = FrechetState.from_bytes(merged.to_bytes()).summary()
            assert found == {**whole, "value": pytest.approx(whole["value"], rel=1e-6)}


def test_merging_leaves_both_parts_as_they_were(judge: FrechetNetwork) -> None:
    a, b = state_of(judge, digits(4, 0), digits(4, 1)), state_of(judge, digits(4, 2), digits(4, 3))
    before = a.to_bytes(), b.to_bytes()
    a.merge(b)
    assert (a.to_bytes(), b.to_bytes()) == before


def test_the_same_images_are_at_no_distance(judge: FrechetNetwork) -> None:
    images = digits(200, 5)
    assert state_of(judge, images, images).summary()["value"] == pytest.approx(0, abs=1e-5)


def test_one_image_has_no_spread_and_so_no_value(judge: FrechetNetwork) -> None:
    found = state_of(judge, digits(1, 0), digits(5, 1)).summary()
    assert (found["value"], found["num_images"], found["num_originals"]) == (None, 1, 5)


def test_states_of_other_weights_are_not_added() -> None:
    images = torch.zeros(2, 1, 1, 2)
    one, other = (state_of(pixels_as_features(2, digest), images, images) for digest in ("first", "second"))
    with pytest.raises(ConfigError, match=r"pixels \(first\) and of pixels \(second\)"):
        one.merge(other)


def test_a_finished_shard_takes_no_more_images(judge: FrechetNetwork) -> None:
    state = FrechetState.from_bytes(FrechetState(judge).to_bytes())
    with pytest.raises(ConfigError, match="load the network"):
        state.update(digits(1, 0), digits(1, 0))


@pytest.mark.parametrize("data", [b"", b"not an npz file"])
def test_bytes_of_something_else_are_refused(data: bytes) -> None:
    with pytest.raises(CheckpointError, match="not the state of a Fréchet distance"):
        FrechetState.from_bytes(data)


def test_what_a_network_needs_is_asked_before_any_work(tmp_path: Path) -> None:
    check_frechet("digits-judge", DIGITS, TORCH_CACHE)
    with pytest.raises(ConfigError, match='"resnet" is not known; wanted one of inception, digits-features'):
        check_frechet("resnet", DIGITS, TORCH_CACHE)
    with pytest.raises(ConfigError, match="32 px; the generator makes 3-channel images of 1024 px"):
        check_frechet("digits-judge", GeneratorConfig.config_f(1024), TORCH_CACHE)
    with pytest.raises(MissingWeightsError, match=f"{INCEPTION_FILE}, which is not in {tmp_path}; nothing is down"):
        check_frechet("inception", DIGITS, Published(tmp_path))


def test_inception_is_loaded_from_its_published_file_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With random weights: every image has 2,048 features, and the state holds their sums."""
    write_random_inception(tmp_path, monkeypatch)
    check_frechet("inception", DIGITS, Published(tmp_path))
    network = load_frechet("inception", Published(tmp_path), CPU)
    images, originals = digits(2, 0), digits(1, 1)
    features = network(images)
    assert features.shape == (2, 2048) and features.std() > 0
    torch.testing.assert_close(network(images[:1]), features[:1], rtol=1e-4, atol=1e-5)
    state = state_of(network, images, originals)
    torch.testing.assert_close(state.metric.fake_features_sum, features.double().sum(dim=0), rtol=1e-4, atol=1e-5)
    assert state.summary()["name"] == "FID" and state.summary()["value"] is None
    assert len(state.to_bytes()) < 36e6


def write_random_inception(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    empty = folder / "empty.pth"
    torch.save({}, empty)
    with monkeypatch.context() as patch, torch.random.fork_rng(devices=[]):
        patch.setattr(FeatureExtractorInceptionV3, "load_state_dict", lambda *_: None)
        torch.manual_seed(0)
        network = FeatureExtractorInceptionV3("inception-v3-compat", ["2048"], str(empty))
    torch.save(network.state_dict(), folder / INCEPTION_FILE)


class Explosive:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (exec, ("raise SystemExit('code of the file was run')",))


def test_a_file_in_inceptions_place_runs_no_code(tmp_path: Path) -> None:
    torch.save({"fc.bias": Explosive()}, tmp_path / INCEPTION_FILE)
    with pytest.raises(CheckpointError, match="does not hold the weights of torch-fidelity's Inception-v3"):
        load_frechet("inception", Published(tmp_path), CPU)
    torch.save({"fc.bias": torch.zeros(3)}, tmp_path / INCEPTION_FILE)
    with pytest.raises(CheckpointError, match="does not hold the weights"):
        check_frechet("inception", DIGITS, Published(tmp_path))
