"""Previews of every stage: what is rendered anyway, kept small, and not lost with a worker."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from lsap_archive import Archive, Preview, Store, open_archive, verify_archive
from lsap_core.images import to_uint8
from lsap_core.presets import method
from tasks.archived.anchors import AnchorOptions
from tasks.archived.previews import ShardPreviews
from tasks.archived.rendering import Renderer, Stored
from tasks.archived.saved_states import Finished
from tasks.editing.cost import dry_run
from tasks.inversion.imported import ImportRequest, import_codes
from tasks.pictures.previews import preview_file
from tasks.weights.generators import GeneratorFile, load_generator
from tests.refining import METHOD, REFINED, RefiningDesk

SIDE = 128
IDS = ["0.png", "1.png", "2.png"]
EDITS = {"right": {"direction": "right", "strength": 2}}
FEW_STEPS = (method("stylegan2_w_plus", num_steps=3, record_every=2),)


def pixels_of(data: bytes | None) -> np.ndarray:
    assert data is not None
    with Image.open(io.BytesIO(data)) as picture:
        assert picture.format == "WEBP"
        return np.asarray(picture)


def shown(renderer: Renderer, archive: Archive, name: str) -> np.ndarray:
    """What a method's images show, [N, h, w, 3]; WebP has no gray, so it is there three times."""
    pixels = to_uint8(Stored.of_images(renderer, archive, IDS, name).show())
    return np.broadcast_to(pixels, (*pixels.shape[:3], 3)) if pixels.shape[3] == 1 else pixels


def test_every_stage_keeps_what_its_images_show(desk: Any) -> None:
    laboratory, refining = desk.laboratory, RefiningDesk(desk.laboratory)
    laboratory.fill(3)
    laboratory.put("bad.png", b"no picture")
    laboratory.put("copy.png", laboratory.picture(1))
    laboratory.invert(previews=SIDE)
    refining.refine(previews=SIDE)
    told = dry_run(desk.request(EDITS, previews=SIDE))
    assert (
        told["archive bytes of previews, about"]
        == sum(told["images left by edit, beside those to calibrate"].values()) * 358
    )
    desk.edit(EDITS, previews=SIDE)
    desk.edit({"kept": EDITS["right"]}, previews=SIDE, keep_images=True)
    archive = open_archive(laboratory.archive)
    names = [METHOD, REFINED, *(f"{name}/{edit}" for name in (METHOD, REFINED) for edit in ("right", "kept"))]
    assert sorted(names) == sorted([*archive.methods, *archive.edits])
    for name in names:
        found = np.stack([pixels_of(data) for data in archive.previews(IDS, name)])
        difference = np.abs(found.astype(int) - shown(refining.renderer, archive, name))
        assert difference.max() <= 1, name  # small ones lose nothing; a level may be another one in another batch
        missing, copied = archive.previews(["bad.png", "copy.png"], name)
        assert missing is None and copied == archive.previews(["1.png"], name)[0]
    pictures = {archive.previews(IDS[:1], name)[0] for name in names}
    assert len(pictures) == len(names) - 2  # an edit by another name is the same picture
    for number, data in enumerate(archive.original_previews(IDS)):
        assert np.array_equal(pixels_of(data)[..., 0], np.random.default_rng(number).integers(0, 256, (32, 32)))
    for name in names[-3:]:
        if name.endswith("kept"):
            assert [Image.open(io.BytesIO(data)).size for data in archive.images(IDS, name)] == [(32, 32)] * 3
    assert verify_archive(laboratory.archive).is_sound


def test_what_lies_around_the_content_is_left_out_and_what_failed_too() -> None:
    previews = ShardPreviews(16, (4, 28, 0, 32))
    pixels = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), dtype=np.uint8)
    previews.add([2, 0], pixels, [one[::-1] for one in pixels])
    first, *others = previews.files(range(4, 7), [{"status": "ok"}, {"status": "ok"}, {"status": "failed"}])
    assert first == Preview(4, preview_file(pixels[1, 4:28], 16), preview_file(pixels[1, ::-1][4:28], 16))
    assert pixels_of(first.picture).shape == (12, 16, 3)
    assert others == []


def test_none_are_kept_and_no_edit_is_rendered_where_none_are_asked_for(
    desk: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    desk.laboratory.fill(3)
    desk.laboratory.invert(previews=0)
    refining = RefiningDesk(desk.laboratory)
    refining.refine(previews=0)

    def render(*_: object) -> None:
        raise AssertionError("an edit was rendered")

    monkeypatch.setattr(Stored, "render", render)
    archive, _ = desk.edit(EDITS, previews=0)
    assert archive.previews(IDS, METHOD) == archive.original_previews(IDS) == [None] * 3
    assert not [key for key in desk.laboratory.contents() if "/previews/" in key]


def test_previews_change_no_digest_and_no_code(new_laboratory: Callable[[], Any]) -> None:
    plain, seen = new_laboratory(), new_laboratory()
    plain.fill(3)
    archives = [plain.invert(methods=FEW_STEPS), seen.invert(methods=FEW_STEPS, previews=SIDE)]
    (first,), (second,) = (archive.runs for archive in archives)
    assert (first.run_id, first.method_digest, first.config) == (second.run_id, second.method_digest, second.config)
    assert second.num_bytes > first.num_bytes
    np.testing.assert_array_equal(*(archive.codes(IDS, METHOD) for archive in archives))


def killed_with_the_first_batch_done(monkeypatch: pytest.MonkeyPatch, work: Callable[[], object]) -> None:
    """Work until something is put after what is finished of the first batch."""
    put, keys = Store.put, list[str]()

    def put_until_then(self: Store, key: str, data: bytes) -> None:
        if any("finished-" in one for one in keys):
            raise RuntimeError("the worker was killed")
        keys.append(key)
        put(self, key, data)

    with monkeypatch.context() as patch:
        patch.setattr(Store, "put", put_until_then)
        with pytest.raises(RuntimeError, match="was killed"):
            work()


@pytest.mark.parametrize("stage", ["inversion", "refinement"])
def test_previews_of_images_that_were_done_are_taken_up(
    new_laboratory: Callable[[], Any], monkeypatch: pytest.MonkeyPatch, stage: str
) -> None:
    through, broken = new_laboratory(), new_laboratory()
    through.fill(4)
    asked = {"batch_size": 2, "previews": SIDE}
    if stage == "inversion":
        through.invert(methods=FEW_STEPS, **asked)
        prepared = broken.prepare(methods=FEW_STEPS, **asked)
        killed_with_the_first_batch_done(monkeypatch, lambda: broken.embed(prepared, save_every_seconds=0))
        (outcome,) = broken.embed(prepared)
        broken.publish(prepared)
    else:
        through.invert()
        broken.invert()
        RefiningDesk(through).refine(**asked)
        desk = RefiningDesk(broken)
        killed_with_the_first_batch_done(monkeypatch, lambda: desk.refine(save_every_seconds=0, **asked))
        _, (outcome,) = desk.refine(**asked)
    assert outcome.num_known == 2
    found, wanted = (
        {key: lab.store.get(key) for key in lab.contents() if "/previews/" in key} for lab in (broken, through)
    )
    assert found == wanted and len(found) == 1


def test_finished_images_are_kept_with_their_previews() -> None:
    previews = [(b"a", b"b"), (b"", b""), (b"c", b"")]
    arrays = {"w_plus": np.arange(6, dtype=np.float32).reshape(3, 2)}
    done = Finished(["x", "y", "z"], [{"status": "ok"}] * 3, arrays, [b"1", b"2", b"3"], previews)
    found = Finished.decode(done.part(0, 3).encode())
    assert (found.previews, found.files, list(found.arrays)) == (previews, [b"1", b"2", b"3"], ["w_plus"])
    assert Finished.decode(done.part(1, 3).encode()).previews == previews[1:]
    assert Finished.decode(Finished(["x"], [{}], {"w": np.zeros(1)}).encode()).previews == []


@pytest.mark.parametrize("has_source", [True, False])
def test_imported_codes_are_seen_with_their_originals(laboratory: Any, tmp_path: Path, has_source: bool) -> None:
    laboratory.fill(3)
    laboratory.put("1.png", b"no picture")
    codes = np.random.default_rng(0).standard_normal((3, 8, 8)).astype(np.float32)
    np.save(tmp_path / "codes.npy", codes)
    request = ImportRequest(
        laboratory.archive,
        (str(tmp_path / "codes.npy"),),
        GeneratorFile(laboratory.generator),
        "projected",
        image_ids=tuple(IDS),
        source=str(laboratory.source) if has_source else None,
        anchor=AnchorOptions(num_samples=64),
        batch_size=2,
        device="cpu",
        previews=SIDE,
    )
    import_codes(request)
    archive = open_archive(laboratory.archive)
    generator = load_generator(laboratory.generator).generator.freeze()
    with torch.no_grad():
        wanted = to_uint8(generator.synthesize(torch.from_numpy(codes)))
    for data, pixels in zip(archive.previews(IDS, "projected"), wanted, strict=True):
        assert np.abs(pixels_of(data).astype(int) - pixels).max() <= 1
    kept = [data is not None for data in archive.original_previews(IDS)]
    assert kept == [has_source, False, has_source]
