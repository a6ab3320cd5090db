"""What networks see of a picture is looked for once: of an original by the first evaluation, for all that follow."""

from __future__ import annotations

import importlib.util
import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from lsap_archive import Archive, CorruptArchiveError, repair_archive, verify_archive
from lsap_core.perceptual.face_detection import FaceDetector, Faces
from lsap_core.presets import method
from tasks.measuring.measures import Batch, MeasureKey, measure_all
from tasks.measuring.networks import EvaluationChoice, IdentityMeasure
from tasks.weights.published import Published

REFERENCE = Path(__file__).parents[2] / "reference"
TWO_METHODS = (method("stylegan2_w_plus", num_steps=2), method("stylegan2_w", num_steps=2))


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Published:
    """MTCNN as it is published, of numbers made from names."""
    spec = importlib.util.spec_from_file_location("reference_fill", REFERENCE / "fill.py")
    assert spec is not None and spec.loader is not None
    fill = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(fill)
    folder = tmp_path_factory.mktemp("mtcnn")
    tables = json.loads((REFERENCE / "keys" / "mtcnn.json").read_text())
    for name in ("pnet", "rnet", "onet"):
        arrays = {key: t.numpy() for key, t in fill.fill_dict(tables[name], "plain", salt=f"{name}:").items()}
        arrays = {key: one * (0.1 if "_2" in key else 1) for key, one in arrays.items()}  # offsets, which are wild
        np.save(folder / f"{name}.npy", arrays)  # type: ignore[arg-type]
    return Published(folder)


@pytest.fixture
def looked_at(monkeypatch: pytest.MonkeyPatch) -> Counter[bytes]:
    """How often the detector has looked at each picture."""
    counted: Counter[bytes] = Counter()
    detect = FaceDetector.detect

    def counting(detector: FaceDetector, images: Tensor) -> list[Faces]:
        counted.update(picture.numpy().tobytes() for picture in images)
        return detect(detector, images)

    monkeypatch.setattr(FaceDetector, "detect", counting)
    return counted


def values(measured: tuple[Archive, Any]) -> dict[tuple[str, ...], tuple[float | None, str | None]]:
    """What an evaluation has measured."""
    archive, planned = measured
    ids = [evaluation_id for of_method in planned.evaluations.values() for evaluation_id in of_method]
    rows = archive.measurements(evaluations=ids).to_pylist()
    return {(row["method"], row["image_id"], row["measure"], row["by"]): (row["value"], row["problem"]) for row in rows}


def test_a_detector_looks_once_at_each_image_and_at_an_original_whatever_is_made_of_it(
    desk: Any, published: Published, looked_at: Counter[bytes]
) -> None:
    laboratory = desk.laboratory
    laboratory.fill(5)
    laboratory.methods = TWO_METHODS
    laboratory.invert()
    networks = EvaluationChoice(identity=("digits-judge",), published=published)
    asked = {"networks": networks, "frechet": "digits-judge"}
    first = values(desk.evaluate(attributes=("yaw", "smile"), **asked))
    assert len(looked_at) == 5 + 2 * 5 and set(looked_at.values()) == {1}
    measures = Counter(key[2] for key in first)
    assert measures["attribute"] == measures["attribute_of_original"] == 2 * 2 * 5
    assert any(value is not None for key, (value, _) in first.items() if key[2] == "attribute_of_original")
    again = values(desk.evaluate(attributes=("smile", "yaw"), **asked))  # another evaluation
    assert sorted(looked_at.values()) == [1] * 5 + [2] * 10  # originals were not looked at again
    assert again == first


def test_what_was_seen_is_of_these_images_these_weights_and_this_placement(desk: Any, published: Published) -> None:
    laboratory = desk.laboratory
    laboratory.fill(4)
    laboratory.invert()
    desk.evaluate()
    seen = {key for key in laboratory.contents() if key.startswith("seen/")}
    assert len(seen) == 2  # the judge's classes and its embedding
    (laboratory.source / "1.png").rename(laboratory.source / "hidden")
    laboratory.methods = (method("stylegan2_w", num_steps=2),)
    laboratory.fill(1)
    laboratory.invert(shard_rows=3)
    archive, _ = desk.evaluate(methods=("stylegan2_w",))
    more = {key for key in laboratory.contents() if key.startswith("seen/")} - seen
    assert len(more) == 2 * 1  # three other images make another shard
    (laboratory.source / "hidden").rename(laboratory.source / "1.png")
    assert verify_archive(laboratory.archive).is_sound and archive.evaluations


def test_originals_that_come_back_are_added_to_what_was_seen(desk: Any) -> None:
    laboratory = desk.laboratory
    laboratory.fill(4)
    laboratory.invert()
    (laboratory.source / "1.png").unlink()
    desk.evaluate()
    before = {key for key in laboratory.contents() if key.startswith("seen/")}
    laboratory.put("1.png", laboratory.picture(1))
    desk.evaluate()
    after = {key for key in laboratory.contents() if key.startswith("seen/")}
    assert before < after and len(after) == 2 * len(before)
    asked = desk.request(attributes=("slant",))  # another question, for which nothing more has to be seen
    desk.finish(attributes=asked.attributes)
    assert {key for key in laboratory.contents() if key.startswith("seen/")} == after


def test_what_was_seen_and_is_damaged_is_refused_told_and_removed(desk: Any) -> None:
    laboratory = desk.laboratory
    laboratory.fill(2)
    laboratory.invert()
    wanted = values(desk.evaluate())
    first, second = sorted(key for key in laboratory.contents() if key.startswith("seen/"))
    sound = laboratory.store.get(first)
    other = laboratory.store.get(second)  # sound, of another name
    for damaged, attribute in ((sound[:-9] + b"?" + sound[-8:], "slant"), (other, "stroke_width")):
        asked = {"attributes": (attribute,)}
        laboratory.store.put(first, damaged)
        assert [problem.key for problem in verify_archive(laboratory.archive).problems] == [first]
        with pytest.raises(CorruptArchiveError, match=r"seen/.*(readable|kept as)"):
            desk.evaluate(**asked)
        assert repair_archive(laboratory.archive).removed == [first]
        assert verify_archive(laboratory.archive).is_sound
        found = values(desk.evaluate(**asked))
        assert {key: found[key] for key in wanted} == wanted and laboratory.store.get(first) == sound


def test_a_network_that_aligns_faces_takes_the_points_that_others_have_found(
    laboratory: Any, published: Published, looked_at: Counter[bytes]
) -> None:
    """Of images that are compared smaller than they are, each size is looked at once."""
    from lsap_core.generators.config import GeneratorConfig
    from lsap_core.generators.generator import Generator
    from lsap_core.perceptual.curricular_face import FaceIdentity
    from tasks.measuring.attributes import load_attribute
    from tasks.measuring.face_points import FacePoints
    from tasks.measuring.looks import Look

    class Embedding(torch.nn.Module):
        def forward(self, faces: Tensor) -> Tensor:
            return torch.nn.functional.adaptive_avg_pool2d(faces, 14).flatten(1)[:, :512]

    cpu = torch.device("cpu")
    points = FacePoints.load(published, cpu)
    network = FaceIdentity(points.detector, Embedding())  # type: ignore[arg-type]
    instruments = {
        "identity": {name: IdentityMeasure(network, Look(name, name), points) for name in ("one", "other")},
        "attribute": {
            name: load_attribute(name, device=cpu, published=published, points=points) for name in ("yaw", "smile")
        },
    }
    for resolution, sizes in ((64, 1), (512, 2)):
        looked_at.clear()
        convs = (2,) * (resolution.bit_length() - 2)
        generator = Generator(GeneratorConfig(resolution, convs, z_dim=2, w_dim=2, num_mapping_layers=1))
        random = torch.Generator().manual_seed(0)
        images, original = (torch.rand(1, 3, resolution, resolution, generator=random) * 2 - 1 for _ in range(2))
        batch = Batch(generator, torch.zeros(1, generator.config.num_ws, 2), images, original)
        found = measure_all(batch, instruments)
        assert len(looked_at) == 2 * sizes and set(looked_at.values()) == {1}
        alone = IdentityMeasure(network)(batch.seen, batch.wanted)  # finds the faces itself
        assert found[MeasureKey("identity", "one")].values == [None if alone.isnan() else pytest.approx(alone.item())]
