"""Networks by name: which are refused, what is said of missing ones, and what their digest tells."""

from __future__ import annotations

import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from lsap_core.errors import CheckpointError, ConfigError, MissingWeightsError
from lsap_core.generators.config import GeneratorConfig
from lsap_core.perceptual.features import EmbeddingSimilarity, FeatureDistance, FeatureNet
from lsap_core.perceptual.judge import JudgeNet
from tasks.settings import Settings
from tasks.weights import networks as networks_module
from tasks.weights.devices import module_device
from tasks.weights.networks import (
    EMBEDDED,
    IDENTITY_FILES,
    LPIPS_TRUNKS,
    NetworkChoice,
    find_weights,
    load_identity,
    load_networks,
    load_perceptual,
    network_digest,
)
from tasks.weights.published import TORCH_CACHE, Published
from tests.rehearsal.filled import filled, published

DIGITS = GeneratorConfig(32, (2, 2, 2, 2), image_channels=1)
CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ({"perceptual": "lpips-vg"}, '"lpips-vg" is not known; wanted one of lpips-vgg'),
        ({"metric_perceptual": "vgg"}, '"vgg" is not known'),
        ({"identity": "arc"}, '"arc" is not known; wanted one of arcface, moco, digits-features or none'),
        ({"identity": "digits-judge"}, '"digits-judge" is not known; wanted one of arcface'),  # it embeds nothing
        ({"identity": "lpips-vgg"}, '"lpips-vgg" is not known'),
        ({"judge": "somebody"}, '"somebody" is not known; wanted one of digits-features, digits-judge'),
        ({"judge": "digits-features"}, '"digits-features" is the network of the loss, so it cannot judge'),
        ({"perceptual": "digits-judge", "judge": "digits-judge"}, '"digits-judge" is the network of the loss'),
    ],
)
def test_a_wrong_choice_is_refused_by_name(choice: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        NetworkChoice(**{"perceptual": "digits-features", "metric_perceptual": "digits-features", **choice})


def test_a_judge_may_be_the_network_of_the_metric() -> None:
    NetworkChoice("digits-features", "digits-judge", judge="digits-judge").check(DIGITS)


# --- checked before the work --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def filled_networks(tmp_path_factory: pytest.TempPathFactory) -> Published:
    """A folder of published files with other weights than the published ones."""
    folder = tmp_path_factory.mktemp("filled")
    for name, table in (("lpips-vgg", "lpips_vgg"), ("lpips-alex", "lpips_alex")):
        torch.save(filled(published(table)), folder / LPIPS_TRUNKS[name])
    torch.save(filled(published("arcface_ir_se50")), folder / IDENTITY_FILES["arcface"][0])
    torch.save({"state_dict": filled(published("moco_resnet50"))}, folder / IDENTITY_FILES["moco"][0])
    return Published(str(folder), takes_others=True)


def test_networks_that_fit_pass(filled_networks: Published) -> None:
    NetworkChoice("digits-features", "digits-features", identity="digits-features", judge="digits-judge").check(DIGITS)
    choice = NetworkChoice("lpips-vgg", "lpips-alex", identity="moco", published=filled_networks)
    choice.check(GeneratorConfig.config_f(1024))  # LPIPS looks at images of every size


@pytest.mark.parametrize(
    ("config", "made"),
    [
        (GeneratorConfig(64, (2,) * 5, image_channels=1), "1-channel images of 64 px"),
        (GeneratorConfig(32, (2,) * 4, image_channels=3), "3-channel images of 32 px"),
    ],
)
@pytest.mark.parametrize(
    ("choice", "name"),
    [
        ({"perceptual": "digits-features"}, "digits-features"),
        ({"metric_perceptual": "digits-judge"}, "digits-judge"),
        ({"identity": "digits-features"}, "digits-features"),
        ({"judge": "digits-judge"}, "digits-judge"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else value,
)
def test_a_network_for_other_images_is_refused(
    filled_networks: Published, choice: dict[str, Any], name: str, config: GeneratorConfig, made: str
) -> None:
    fitting = {"perceptual": "lpips-vgg", "metric_perceptual": "lpips-vgg", "published": filled_networks}
    message = f"{name} looks at 1-channel images of 32 px; the generator makes {made}: choose an lpips network"
    with pytest.raises(ConfigError) as caught:
        NetworkChoice(**{**fitting, **choice}).check(config)
    assert str(caught.value) == message


@pytest.mark.parametrize("name", ["arcface", "moco"])
def test_a_missing_network_of_identity_is_told_with_its_files(name: str, tmp_path: Path) -> None:
    choice = NetworkChoice("digits-features", "digits-features", identity=name, published=Published(tmp_path))
    with pytest.raises(MissingWeightsError) as caught:
        choice.check(DIGITS)
    for part in (name, *IDENTITY_FILES[name], str(tmp_path), "LSAP_BACKBONES", "nothing is downloaded"):
        assert part in str(caught.value)


@pytest.mark.parametrize(
    ("config", "made"),
    [
        (GeneratorConfig.config_f(128), "images of 128 px: choose moco"),
        (replace(GeneratorConfig.config_f(512), constant=(4, 2)), "images of 512 x 256 px: choose moco"),
        (GeneratorConfig.config_f(512, content_box=(64, 448, 0, 512)), r"512 px with the content box \(64, 448"),
    ],
)
def test_arcface_is_refused_for_what_cannot_be_aligned_faces(
    filled_networks: Published, config: GeneratorConfig, made: str
) -> None:
    choice = NetworkChoice("lpips-alex", "lpips-alex", identity="arcface", published=filled_networks)
    with pytest.raises(ConfigError, match=f"arcface looks at aligned faces of 256 px; the generator makes .*{made}"):
        choice.check(config)
    choice.check(GeneratorConfig.config_f(256))
    NetworkChoice("lpips-alex", "lpips-alex", identity="moco", published=filled_networks).check(config)


def test_a_network_that_a_file_does_not_hold_is_refused_before_the_work(tmp_path: Path) -> None:
    torch.save(filled(published("lpips_alex")), tmp_path / LPIPS_TRUNKS["lpips-vgg"])
    choice = NetworkChoice("lpips-vgg", "lpips-vgg", published=Published(tmp_path, takes_others=True))
    with pytest.raises(CheckpointError, match=r"vgg16-397923af\.pth is not a readable file of weights for lpips-vgg"):
        choice.check(GeneratorConfig.config_f(256))


@pytest.mark.parametrize("name", LPIPS_TRUNKS)
def test_a_missing_trunk_is_told_with_its_file_and_the_variable(name: str, tmp_path: Path) -> None:
    for role in ("perceptual", "metric_perceptual"):
        roles = {"perceptual": "digits-features", "metric_perceptual": "digits-features", role: name}
        with pytest.raises(MissingWeightsError) as caught:
            NetworkChoice(**roles, published=Published(tmp_path)).check(DIGITS)
        for part in (name, LPIPS_TRUNKS[name], str(tmp_path), "LSAP_BACKBONES", "nothing is downloaded"):
            assert part in str(caught.value)


def test_the_variable_of_the_message_is_the_one_that_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / LPIPS_TRUNKS["lpips-alex"]
    path.touch()
    monkeypatch.setenv("LSAP_BACKBONES", str(tmp_path))
    settings = Settings.from_environment()
    with pytest.raises(CheckpointError) as caught:
        find_weights("lpips-alex", Published(settings.backbones))
    for part in (str(path), "SHA-256 e3b0c44298fc1c14", "known by 7be5be79", "LSAP_OTHER_WEIGHTS=1"):
        assert part in str(caught.value)
    monkeypatch.setenv("LSAP_OTHER_WEIGHTS", "1")
    settings = Settings.from_environment()
    assert find_weights("lpips-alex", Published(settings.backbones, takes_others=settings.other_weights)) == path


def test_without_the_variable_trunks_are_those_of_torch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert Settings.from_environment() == Settings(cache=os.environ["LSAP_CACHE"])
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    path = tmp_path / "hub" / "checkpoints" / LPIPS_TRUNKS["lpips-vgg"]
    path.parent.mkdir(parents=True)
    path.touch()
    found = find_weights("lpips-vgg", Published(Settings.from_environment().backbones, takes_others=True))
    assert found == path


def test_an_empty_variable_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LSAP_BACKBONES", "")
    monkeypatch.setenv("LSAP_RAY_ADDRESS", "ray://head:10001")
    assert Settings.from_environment() == Settings(ray_address="ray://head:10001", cache=os.environ["LSAP_CACHE"])


# --- loaded -------------------------------------------------------------------------------------------


def test_every_role_gets_its_network() -> None:
    choice = NetworkChoice("digits-features", "digits-judge", identity="digits-features", judge="digits-judge")
    loaded = load_networks(choice, CPU)
    assert isinstance(loaded.perceptual, FeatureDistance) and isinstance(loaded.perceptual.network, FeatureNet)
    assert isinstance(loaded.metric_perceptual, FeatureDistance)
    assert isinstance(loaded.metric_perceptual.network, JudgeNet)
    assert isinstance(loaded.identity, EmbeddingSimilarity) and isinstance(loaded.identity.network, FeatureNet)
    assert isinstance(loaded.judge, FeatureDistance) and isinstance(loaded.judge.network, JudgeNet)
    for network in (loaded.perceptual, loaded.metric_perceptual, loaded.identity, loaded.judge):
        assert not network.network.training
        assert not any(parameter.requires_grad for parameter in network.parameters())


def test_one_network_in_two_roles_is_loaded_once() -> None:
    loaded = load_networks(NetworkChoice("digits-features", "digits-features"), CPU)
    assert loaded.metric_perceptual is loaded.perceptual
    assert (loaded.identity, loaded.judge) == (None, None)


def test_a_damaged_trunk_is_refused_by_its_path(tmp_path: Path) -> None:
    path = tmp_path / LPIPS_TRUNKS["lpips-vgg"]
    path.write_bytes(b"half a download")
    with pytest.raises(CheckpointError, match=f"{path.name} is not a readable file of weights for lpips-vgg"):
        load_perceptual("lpips-vgg", Published(tmp_path, takes_others=True))


def test_a_trunk_that_carries_code_is_not_run(tmp_path: Path) -> None:
    marker = tmp_path / "was run"

    class Hostile:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (marker,)

    torch.save({"features.0.weight": Hostile()}, tmp_path / LPIPS_TRUNKS["lpips-vgg"])
    with pytest.raises(CheckpointError, match="not a readable file of weights"):
        load_perceptual("lpips-vgg", Published(tmp_path, takes_others=True))
    assert not marker.exists()


@pytest.mark.parametrize(("name", "reason"), [("arcface", "wanted ArcFace"), ("moco", "wanted MoCo v2")])
def test_another_network_in_the_place_of_an_identity_is_refused_by_its_path(
    name: str, reason: str, tmp_path: Path
) -> None:
    path = tmp_path / IDENTITY_FILES[name][-1]
    torch.save({"conv1.weight": torch.zeros(1), "layer1.0.conv1.weight": torch.zeros(1), "fc.bias": 0}, path)
    with pytest.raises(CheckpointError, match=f"{path}: {reason}.*found the weights of a ResNet"):
        load_identity(name, Published(tmp_path))
    path.write_bytes(b"half a download")
    with pytest.raises(CheckpointError, match=f"{path}: PyTorch cannot read it"):
        load_identity(name, Published(tmp_path))


# --- digests ------------------------------------------------------------------------------------------


def test_the_digest_follows_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original, kind = EMBEDDED["digits-features"]
    copy = tmp_path / "features.safetensors"
    shutil.copy(original, copy)
    wanted = network_digest("digits-features", TORCH_CACHE)
    monkeypatch.setitem(networks_module.EMBEDDED, "digits-features", (copy, kind))
    assert network_digest("digits-features", TORCH_CACHE) == wanted
    data = copy.read_bytes()
    copy.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    assert network_digest("digits-features", TORCH_CACHE) != wanted


def test_the_digest_of_a_trunk_covers_all_of_a_large_file(tmp_path: Path) -> None:
    path = tmp_path / LPIPS_TRUNKS["lpips-alex"]
    digests = set()
    for end in (b"a", b"b"):
        path.write_bytes(bytes(3 * 2**20) + end)
        digests.add(network_digest("lpips-alex", Published(tmp_path, takes_others=True)))
    assert len(digests) == 2
    with pytest.raises(MissingWeightsError):
        network_digest("lpips-vgg", Published(tmp_path))


def test_the_digest_of_an_identity_follows_the_file_under_either_name(tmp_path: Path) -> None:
    for file in IDENTITY_FILES["moco"]:
        (tmp_path / file).write_bytes(b"same")
    usual = network_digest("moco", Published(tmp_path))
    (tmp_path / IDENTITY_FILES["moco"][0]).unlink()
    assert network_digest("moco", Published(tmp_path)) == usual
    (tmp_path / IDENTITY_FILES["moco"][1]).write_bytes(b"other")
    assert network_digest("moco", Published(tmp_path)) != usual


def test_the_device_of_a_name() -> None:
    assert module_device("cpu") == torch.device("cpu")
    assert module_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")


# --- faces that are found first ---------------------------------------------------------------------


def test_curricularface_reports_identity_and_is_in_no_embedding_run(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match='"curricularface" is not known; wanted one of arcface, moco, digits-features'
    ):
        NetworkChoice("digits-features", "digits-features", identity="curricularface")
    with pytest.raises(
        MissingWeightsError, match=r"curricularface needs pnet.npy, rnet.npy, onet.npy, CurricularFace_B"
    ):
        load_identity("curricularface", Published(tmp_path))


def test_the_digest_of_curricularface_tells_the_detector_too(tmp_path: Path) -> None:
    files = ("pnet.npy", "rnet.npy", "onet.npy", "CurricularFace_Backbone.pth")
    for file in files:
        (tmp_path / file).write_bytes(file.encode())
    before = network_digest("curricularface", Published(tmp_path))
    assert network_digest("curricularface", Published(tmp_path)) == before and len(before) == 16
    for file in files:
        (tmp_path / file).write_bytes(b"other")
        assert network_digest("curricularface", Published(tmp_path)) != before
        (tmp_path / file).write_bytes(file.encode())
