"""Codes from elsewhere: every file that circulates, whose images they are, and the run that they become."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import Tensor

from lsap_archive import ArchiveMismatchError, open_archive, verify_archive
from lsap_core.alignment.sncd import SncdLoss
from lsap_core.errors import CheckpointError, ConfigError, ShapeError
from lsap_core.generators import Generator, GeneratorConfig
from lsap_core.images import to_uint8
from tasks.archived.anchors import AnchorOptions, open_anchor
from tasks.inversion import imported
from tasks.inversion.code_files import check_ids, names_of_files, read_codes
from tasks.inversion.imported import ImportRequest, import_codes
from tasks.weights.generators import GeneratorFile, load_generator, save_generator

CONFIG = GeneratorConfig(32, (8, 8, 8, 8), z_dim=6, w_dim=12, image_channels=1)
K, D = CONFIG.num_ws, CONFIG.w_dim


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def saved(path: Path, document: Any) -> str:
    if path.suffix == ".pt":
        torch.save(document, path)
    elif path.suffix == ".npy":
        np.save(path, document.numpy())
    elif path.suffix == ".npz":
        np.savez(path, **{name: values.numpy() for name, values in document.items()})
    else:
        safetensors.torch.save_file(document, path)
    return str(path)


# --- files --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("suffix", "wrap"),
    [
        (".npz", lambda codes: {"w": codes}),  # NVlabs' projector
        (".npz", lambda codes: {"latents": codes}),
        (".npy", lambda codes: codes),
        (".pt", lambda codes: codes),  # e4e's and pSp's inference
        (".pt", lambda codes: list(codes)),
        (".pt", lambda codes: {"latents": codes, "args": {"steps": 3}, "path": "a.png"}),
        (".safetensors", lambda codes: {"w_plus": codes}),
    ],
)
@pytest.mark.parametrize("shape", [(3, K, D), (1, K, D), (3, K * D), (3, D), (3, 1, D)], ids=str)
def test_codes_are_read_from_what_programs_leave(
    suffix: str, wrap: Callable[[Tensor], Any], shape: tuple[int, ...], tmp_path: Path
) -> None:
    codes = numbers(*shape)
    found = read_codes(saved(tmp_path / f"codes{suffix}", wrap(codes)), CONFIG)
    is_w = shape[1:] in ((D,), (1, D))
    assert found.space == ("w" if is_w else "w_plus") and found.names is None
    wanted = codes.reshape(-1, 1, D).expand(-1, K, -1) if is_w else codes.reshape(-1, K, D)
    assert torch.equal(found.w_plus, wanted)


def test_codes_by_the_names_of_their_images(tmp_path: Path) -> None:
    by_name = {"b.png": numbers(K, D), "a.png": numbers(1, K, D, seed=1)}
    for place in (saved(tmp_path / "a.pt", by_name), saved(tmp_path / "a.npz", by_name)):
        found = read_codes(place, CONFIG)
        assert found.names == ("b.png", "a.png") and torch.equal(found.w_plus[1], by_name["a.png"][0])
    projected = {
        f"in/{name}.jpg": {"img": numbers(1, 3, 4, 4), "latent": numbers(D, seed=at), "noise": [numbers(1, 1, 4, 4)]}
        for at, name in enumerate("ab")
    }
    found = read_codes(saved(tmp_path / "rosinality.pt", projected), CONFIG)
    assert found.names == ("in/a.jpg", "in/b.jpg") and found.left_out == ("noise maps",) and found.space == "w"
    assert torch.equal(found.w_plus[1], numbers(D, seed=1).expand(K, -1))


def test_a_code_that_may_be_many_has_to_be_told(tmp_path: Path) -> None:
    place = saved(tmp_path / "c.npy", numbers(K, D))
    with pytest.raises(ShapeError, match=rf"codes \[{K}, {D}\] may be one of W\+, or {K} of W: .*--space"):
        read_codes(place, CONFIG)
    assert len(read_codes(place, CONFIG, space="w_plus").w_plus) == 1
    assert len(read_codes(place, CONFIG, space="w").w_plus) == K


def test_one_code_whose_rows_are_alike_needs_no_word(tmp_path: Path) -> None:
    row = numbers(1, D)
    found = read_codes(saved(tmp_path / "w.npy", row.repeat(K, 1)), CONFIG)
    assert len(found.w_plus) == 1 and torch.equal(found.w_plus[0], row.repeat(K, 1))


def test_what_holds_no_codes_of_the_generator_is_refused(tmp_path: Path) -> None:
    for shape in ((2, K + 2, D), (2, D + 1), (2, 3, K, D), (D + 1,)):
        with pytest.raises(ShapeError, match=r"c\.npy: codes .* none of this generator; wanted W \[N, 12\]"):
            read_codes(saved(tmp_path / "c.npy", numbers(*shape)), CONFIG)
    with pytest.raises(CheckpointError, match="it holds no codes"):
        read_codes(saved(tmp_path / "none.pt", {"args": {"lr": 0.1}}), CONFIG)
    objects = tmp_path / "o.npy"
    np.save(objects, np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(CheckpointError, match="plain numbers"):
        read_codes(str(objects), CONFIG)


def test_names_of_files_tell_them_apart() -> None:
    assert names_of_files(["out/a.pt", "out/b.pt"]) == ["a", "b"]
    assert names_of_files(["out/x/a.npz", "out/y/a.npz"]) == ["x/a", "y/a"]
    for ids in (["../a"], [""], ["a", "a"], ["/etc/passwd"], ["a\0b"]):
        with pytest.raises(CheckpointError):
            check_ids(ids)


# --- runs ---------------------------------------------------------------------------------------------


@pytest.fixture
def request_of(laboratory: Any) -> Callable[..., ImportRequest]:
    def make(*files: str, **changes: Any) -> ImportRequest:
        request = ImportRequest(
            laboratory.archive,
            files,
            GeneratorFile(laboratory.generator),
            "projected",
            anchor=AnchorOptions(num_samples=64),
            batch_size=2,
            shard_rows=4,
            device="cpu",
        )
        return replace(request, **changes)

    return make


def test_imported_codes_are_edited_measured_and_queried(desk: Any, request_of: Any, tmp_path: Path) -> None:
    laboratory = desk.laboratory
    laboratory.fill(5)
    codes = numbers(5, 8, 8)
    place = saved(tmp_path / "latents.pt", codes)
    done = import_codes(request_of(place, source=str(laboratory.source)))
    assert (done.by_status, done.known, done.space, done.notes) == ({"ok": 5}, 0, "w_plus", [])
    archive, _ = desk.edit({"slight": {"direction": "right", "strength": 0.5}}, keep_images=True)
    ids = [f"{number}.png" for number in range(5)]
    np.testing.assert_array_equal(archive.codes(ids, "projected"), codes.numpy())
    moved = archive.codes(ids, "projected/slight") - codes.numpy()
    np.testing.assert_allclose(moved, np.broadcast_to(0.5 * np.eye(1, 8), moved.shape), atol=1e-6)
    generator = load_generator(laboratory.generator).generator.freeze()
    anchor = open_anchor(
        laboratory.archive, AnchorOptions(num_samples=64).digest(load_generator(laboratory.generator).digest)
    )
    rows = archive.sql("select * from rows where method = 'projected' order by row").to_pylist()
    with torch.no_grad():
        wanted = SncdLoss(generator, anchor)(codes)
        images = to_uint8(generator.synthesize(codes))[..., 0].astype(np.float64)
    assert [row["sncd"] for row in rows] == pytest.approx(wanted.tolist(), rel=1e-5)
    photos = np.stack([_pixels(laboratory, number) for number in range(5)])
    mse = ((images - photos) ** 2).mean(axis=(1, 2)) * (2 / 255) ** 2
    assert [row["mse"] for row in rows] == pytest.approx(mse.tolist(), rel=2e-2)
    assert {row["noise"] for row in rows} == {"constant"} and rows[0]["width"] == 32
    assert archive.nearest(codes[3, 0].numpy(), 1, "projected").column("image_id").to_pylist() != []
    assert verify_archive(laboratory.archive).is_sound

    again = import_codes(request_of(place, source=str(laboratory.source)))
    assert (again.run_id, again.by_status, again.known) == (None, {}, 5)
    other = saved(tmp_path / "other.pt", codes + 1)
    with pytest.raises(ConfigError, match=r"another code of 0\.png that was imported under this name"):
        import_codes(request_of(other, source=str(laboratory.source)))


def test_inversions_of_the_same_images_lie_beside_imported_ones(
    laboratory: Any, request_of: Any, tmp_path: Path
) -> None:
    """Neither takes the other's images for its own, and SNCD is by one anchor."""
    laboratory.fill(2)
    place = saved(tmp_path / "latents.pt", numbers(2, 8, 8))
    import_codes(request_of(place, source=str(laboratory.source)))
    archive = laboratory.invert()
    assert archive.methods == ["projected", "stylegan2_w_plus"]
    laboratory.fill(3)
    third = saved(tmp_path / "third.npy", numbers(1, 8, 8, seed=1))
    asked = {"source": str(laboratory.source), "image_ids": ("2.png",), "anchor": AnchorOptions(num_samples=99)}
    assert import_codes(request_of(third, **asked)).by_status == {"ok": 1}
    archive = laboratory.invert()
    counted = archive.sql("select method, count(*) as n from latest where status = 'ok' group by method").to_pylist()
    assert {row["method"]: row["n"] for row in counted} == {"projected": 3, "stylegan2_w_plus": 3}
    assert len({run.config["anchor"] for run in archive.runs}) == 1


def _pixels(laboratory: Any, number: int) -> np.ndarray:
    return np.random.default_rng(number).integers(0, 256, (32, 32)).astype(np.uint8).astype(np.float64)


def test_codes_without_images_have_no_reconstruction_to_measure(
    laboratory: Any, request_of: Any, tmp_path: Path
) -> None:
    files = []
    for name in "ab":
        (tmp_path / name).mkdir()
        files.append(saved(tmp_path / name / "projected_w.npz", {"w": numbers(1, 8, 8, seed=ord(name))}))
    bad = numbers(2, 8, 8)
    bad[1, 0, 0] = torch.nan
    files.append(saved(tmp_path / "more.npy", bad))
    done = import_codes(request_of(*files))
    assert done.by_status == {"ok": 3, "failed": 1}
    archive = open_archive(laboratory.archive)
    rows = {row["image_id"]: row for row in archive.rows().to_pylist()}
    assert set(rows) == {"a/projected_w", "b/projected_w", "more/000000", "more/000001"}
    (failed,) = (row for row in rows.values() if row["status"] == "failed")
    assert failed["reason"] == "non_finite_code"
    assert all(row["sncd"] > 0 and row["mse"] is None for row in rows.values() if row["status"] == "ok")
    more = import_codes(request_of(*files, saved(tmp_path / "third.npy", numbers(1, 8, 8, seed=9))))
    assert (more.by_status, more.known) == ({"ok": 1}, 4)


def test_images_and_codes_that_do_not_go_together_are_refused(laboratory: Any, request_of: Any, tmp_path: Path) -> None:
    laboratory.fill(3)
    place = saved(tmp_path / "two.pt", numbers(2, 8, 8, seed=3))
    source = str(laboratory.source)
    with pytest.raises(CheckpointError, match=r"has 3 images, and there are 2 codes: .*--ids"):
        import_codes(request_of(place, source=source))
    with pytest.raises(CheckpointError, match="1 image ids for 2 codes"):
        import_codes(request_of(place, image_ids=("a",)))
    with pytest.raises(CheckpointError, match=r"'9\.png', and the source has no image of that name"):
        import_codes(request_of(place, source=source, image_ids=("2.png", "9.png")))
    with pytest.raises(ConfigError, match="e4e is one that is run here"):
        import_codes(request_of(place, method="e4e"))
    done = import_codes(request_of(place, source=source, image_ids=("2", "photos/0.png")))
    assert done.by_status == {"ok": 2}


def test_a_picture_that_cannot_be_compared_leaves_the_code_good(
    laboratory: Any, request_of: Any, tmp_path: Path
) -> None:
    laboratory.put("a.png", laboratory.picture(1, 32, 48))
    laboratory.put("b.png", b"no picture")
    place = saved(tmp_path / "two.pt", numbers(2, 8, 8, seed=3))
    done = import_codes(request_of(place, source=str(laboratory.source)))
    assert done.by_status == {"ok": 2}
    assert done.notes == ["of these images the originals could not be compared with: 1 not_an_image, 1 not_square"]


def test_the_archive_of_another_generator_is_refused(laboratory: Any, request_of: Any, tmp_path: Path) -> None:
    place = saved(tmp_path / "two.pt", numbers(2, 8, 8, seed=3))
    import_codes(request_of(place))
    torch.manual_seed(5)
    other = str(tmp_path / "other.safetensors")
    save_generator(Generator(load_generator(laboratory.generator).config), other)
    with pytest.raises(ArchiveMismatchError, match="holds codes of generator"):
        import_codes(request_of(place, generator=GeneratorFile(other)))


def test_an_import_that_was_interrupted_goes_on(
    laboratory: Any, request_of: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = saved(tmp_path / "codes.npy", numbers(10, 8, 8))
    measured, interrupted = imported._Import._records, []

    def stop_at_the_second_shard(work: Any, codes: Any, source: Any, previews: Any) -> Any:
        interrupted.append(len(codes))
        if len(interrupted) == 2:
            raise KeyboardInterrupt
        return measured(work, codes, source, previews)

    monkeypatch.setattr(imported._Import, "_records", stop_at_the_second_shard)
    with pytest.raises(KeyboardInterrupt):
        import_codes(request_of(place))
    assert open_archive(laboratory.archive).methods == []
    done = import_codes(request_of(place))
    assert interrupted == [4, 4, 4, 2]  # the first shard was not made again
    assert (done.by_status, done.known) == ({"ok": 10}, 0)
    kept = open_archive(laboratory.archive).codes([f"codes/{index:06d}" for index in range(10)], "projected")
    np.testing.assert_array_equal(kept, numbers(10, 8, 8).numpy())
    assert import_codes(request_of(place)).run_id is None


@pytest.mark.parametrize("layout", ["{}/projected_w.npz", "run/PTI/{}/0.pt", "{}.npy"])
def test_a_folder_of_codes_is_of_the_images_that_its_names_say(
    layout: str, laboratory: Any, request_of: Any, tmp_path: Path
) -> None:
    """Though names and ids sort differently."""
    laboratory.fill(11)
    codes = numbers(11, 8, 8)
    for number, code in enumerate(codes):
        path = tmp_path / "codes" / layout.format(number)
        path.parent.mkdir(parents=True, exist_ok=True)
        saved(path, {"w": code[None]} if path.suffix == ".npz" else code[None])
    done = import_codes(request_of(str(tmp_path / "codes"), source=str(laboratory.source)))
    assert done.by_status == {"ok": 11}
    ids = [f"{number}.png" for number in range(11)]
    np.testing.assert_array_equal(open_archive(laboratory.archive).codes(ids, "projected"), codes.numpy())
    saved(tmp_path / "codes" / "other.npy", codes[:1])
    with pytest.raises(CheckpointError, match="source has no image of that name"):
        import_codes(request_of(str(tmp_path / "codes"), source=str(laboratory.source)))
    (tmp_path / "none").mkdir()
    with pytest.raises(CheckpointError, match="none is a folder without codes"):
        import_codes(request_of(str(tmp_path / "none")))


def test_a_manifest_says_whose_codes_files_hold(laboratory: Any, request_of: Any, tmp_path: Path) -> None:
    laboratory.fill(2)
    codes = numbers(2, 8, 8)
    for name, code in zip("ab", codes, strict=True):
        saved(tmp_path / f"{name}.pt", code[None])
    manifest = tmp_path / "codes.csv"
    manifest.write_text("image_id,codes\n1.png,a.pt\n0.png,b.pt\n")
    import_codes(request_of(str(manifest), source=str(laboratory.source)))
    kept = open_archive(laboratory.archive).codes(["1.png", "0.png"], "projected")
    np.testing.assert_array_equal(kept, codes.numpy())
    saved(tmp_path / "a.pt", codes)
    with pytest.raises(CheckpointError, match=r"holds 2 codes; a manifest wants one for 1\.png"):
        import_codes(request_of(str(manifest)))
    manifest.write_text("name,file\n1.png,a.pt\n")
    with pytest.raises(CheckpointError, match="wanted the columns image_id and codes"):
        import_codes(request_of(str(manifest)))


@pytest.mark.parametrize("name", ["codes.npy", "codes.safetensors"])
def test_codes_of_a_large_file_stay_on_their_disk(name: str, tmp_path: Path) -> None:
    codes = numbers(4, K, D)
    place = saved(tmp_path / name, codes if name.endswith(".npy") else {"w_plus": codes})
    found = read_codes(place, CONFIG)
    assert _is_mapped(found.w_plus) and torch.equal(found.w_plus, codes)


def _is_mapped(codes: Tensor) -> bool:
    """Whether the numbers lie in a mapped file, by the addresses that this process has of files."""
    address = codes.data_ptr()
    for line in Path("/proc/self/maps").read_text().splitlines():
        span, *_, place = line.split(maxsplit=5)
        first, end = (int(part, 16) for part in span.split("-"))
        if first <= address < end:
            return place.endswith((".npy", ".safetensors"))
    return False
