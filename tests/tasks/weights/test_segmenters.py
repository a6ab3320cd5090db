"""Segmenters by name: what they find, what is refused, and what a run keeps of them."""

from __future__ import annotations

import hashlib
from dataclasses import asdict
from pathlib import Path

import pytest
import torch

from lsap_archive import typed
from lsap_core.errors import CheckpointError, ConfigError, MissingWeightsError
from lsap_core.refinement.face_parser import FACE_MERGES, FACE_MERGES_WITH_HAIR, BiSeNet, FaceParser
from tasks.weights.published import Published
from tasks.weights.segmenters import (
    FACE_PARSER_FILE,
    Segmenter,
    Superpixels,
    SuperpixelSettings,
    check_segmenter_name,
    choose_segmenter,
    load_segmenter,
)

QUARTERS = torch.tensor([[-0.8, -0.2], [0.2, 0.8]]).repeat_interleave(32, 0).repeat_interleave(32, 1)[None, None]


def test_superpixels_follow_the_edges_of_an_image_and_are_always_the_same() -> None:
    find = Superpixels(SuperpixelSettings(num_segments=16, sigma=0))
    image = QUARTERS + 0.01 * torch.randn(1, 1, 64, 64, generator=torch.Generator().manual_seed(0))
    labels = find(image)
    assert labels.shape == (1, 64, 64) and labels.dtype == torch.int64
    quarters = (QUARTERS[:, 0] * 10).round().long()
    for label in labels.unique():
        inside = quarters[labels == label]
        assert (inside == inside.mode().values).float().mean() > 0.97
    assert 8 <= len(labels.unique()) <= 24
    assert torch.equal(find(image), labels)


def test_superpixels_of_gray_images_are_those_of_the_same_colours_and_no_neighbour_changes_them() -> None:
    find = Superpixels(SuperpixelSettings())
    images = torch.randn(2, 1, 24, 32, generator=torch.Generator().manual_seed(1)).clamp(-1, 1)
    labels = find(images)
    assert torch.equal(find(images.expand(-1, 3, -1, -1)), labels)
    for index in range(2):
        assert torch.equal(find(images[index : index + 1])[0], labels[index])
    assert len(find(torch.zeros(1, 1, 32, 32)).unique()) > 1  # one colour: by place alone


@pytest.mark.parametrize("name", ["", "faces", "maps", "maps:", "map:/labels", "Superpixels"])
def test_an_unknown_segmenter_is_refused_by_name(name: str) -> None:
    with pytest.raises(ConfigError) as caught:
        choose_segmenter(name, Published())
    for part in (f'segmenter "{name}" is not known', "superpixels, face, face_with_hair", "maps:<folder or URL>"):
        assert part in str(caught.value)


def test_names_that_are_known_need_no_file_to_be_known() -> None:
    for name in ("superpixels", "face", "face_with_hair", "maps:labels", "maps:s3://bucket/labels", "maps:/"):
        check_segmenter_name(name)


def test_a_folder_of_maps_is_told_apart_from_none_and_carries_no_credential(tmp_path: Path) -> None:
    chosen = choose_segmenter(f"maps:{tmp_path}/", Published())
    assert chosen == Segmenter(f"maps:{tmp_path}") and chosen.maps == str(tmp_path)
    assert load_segmenter(chosen, Published()) is None
    (tmp_path / "file.png").touch()
    with pytest.raises(ConfigError, match=r"maps:.*file.png names no folder"):
        choose_segmenter(f"maps:{tmp_path}/file.png", Published())
    with pytest.raises(ConfigError) as caught:
        choose_segmenter("maps:https://me:secret@host/labels", Published())
    assert "credentials" in str(caught.value) and "secret" not in str(caught.value)


def test_what_a_run_keeps_is_read_back_as_it_was() -> None:
    chosen = choose_segmenter("superpixels", Published())
    assert typed(Segmenter, asdict(chosen), "the segmenter") == chosen
    assert isinstance(load_segmenter(chosen, Published()), Superpixels)


def test_the_face_parser_is_found_by_its_published_name_and_known_by_its_weights(tmp_path: Path) -> None:
    published, path = Published(str(tmp_path)), tmp_path / FACE_PARSER_FILE
    with pytest.raises(MissingWeightsError) as caught:
        choose_segmenter("face", published)
    for part in ("face", "79999_iter.pth", str(tmp_path), "nothing is downloaded", "LSAP_BACKBONES"):
        assert part in str(caught.value)
    torch.save(BiSeNet().state_dict(), path)
    chosen = choose_segmenter("face", published)
    assert chosen.digest == hashlib.sha256(path.read_bytes()).hexdigest()[:16] and chosen.maps is None
    parser = load_segmenter(chosen, published)
    assert isinstance(parser, FaceParser) and parser.merges == FACE_MERGES
    assert parser(torch.zeros(1, 3, 64, 64)).shape == (1, 64, 64)
    with_hair = load_segmenter(choose_segmenter("face_with_hair", published), published)
    assert isinstance(with_hair, FaceParser) and with_hair.merges == FACE_MERGES_WITH_HAIR
    torch.save({"weight": torch.zeros(1)}, path)
    with pytest.raises(CheckpointError, match=r"the refinement was planned with .*: put that file in its place"):
        load_segmenter(chosen, published)
    with pytest.raises(CheckpointError, match=rf"{FACE_PARSER_FILE}: wanted the face parser BiSeNet"):
        choose_segmenter("face", published)
