"""A photo in, codes and pictures out, in five lines: the same as a run of an archive gives."""

from __future__ import annotations

import contextlib
import io
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import lsap
from domains.digits.data import load_split
from lsap_archive import open_archive
from lsap_core.errors import MissingWeightsError
from tasks.errors import BadImageError
from tasks.inversion.plan import InversionStage
from tasks.inversion.worker import EmbedWorker


@pytest.fixture(scope="module", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LSAP_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def digits(_own_cache: None) -> lsap.Model:
    return lsap.load("digits", device="cpu")


@pytest.fixture(scope="module")
def seven(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("photos") / "seven.png"
    Image.fromarray(load_split("test").images[7]).save(path)
    return path


@pytest.mark.parametrize("method", ["lsap_o_w_plus", "lsap_e"])
def test_codes_noise_and_measures_are_those_of_a_run(
    digits: lsap.Model, seven: Path, method: str, tmp_path: Path
) -> None:
    from flows.parameters.invert import InvertRun
    from tasks.settings import Settings

    fields = {"source": str(seven.parent), "archive": str(tmp_path / "archive"), "domain": "digits"}
    embedding = {"num_steps": 3} if method == "lsap_o_w_plus" else {}
    run = InvertRun.of({**fields, "methods": [method], "embedding": embedding, "compile": "never"})
    request = run.resolve(Settings())
    with contextlib.closing(InversionStage(request)) as stage:
        (job,) = stage.jobs()
        EmbedWorker(request)(*job.shards)
        stage.publish(job.job_id)
    archive = open_archive(str(tmp_path / "archive"))
    row = archive.rows().to_pylist()[0]

    found = digits.invert(seven, method, **embedding)
    np.testing.assert_array_equal(found.codes, archive.codes([row["image_id"]], method)[0])
    if method == "lsap_o_w_plus":
        for mine, kept in zip(found.noise, archive.noise([row["image_id"]], method), strict=True):
            np.testing.assert_array_equal(mine, kept[0])
    assert {name: row[name] for name in found.measures} == found.measures


def test_a_photo_may_be_a_path_bytes_a_picture_or_an_array(digits: lsap.Model, seven: Path) -> None:
    picture = Image.open(seven)
    sources = [seven, str(seven), seven.read_bytes(), picture, np.asarray(picture)]
    codes = [digits.invert(digits.photo(one, name="seven.png"), "e4e").codes for one in sources]
    assert all(np.array_equal(one, codes[0]) for one in codes)


def test_edits_start_at_the_inversion_and_compose(digits: lsap.Model, seven: Path, tmp_path: Path) -> None:
    found = digits.invert(seven, "lsap_e")
    assert np.array_equal(found.edit("slant", 0).pixels, found.pixels)
    twice = found.edit("slant", 1).edit("slant", 1)
    np.testing.assert_allclose(twice.codes, found.edit("slant", 2).codes, atol=1e-5)
    assert repr(found.edit("slant", 2)) == "Edited('seven.png', 'lsap_e': slant +2)"
    with Image.open(found.edit("slant", 2).save(tmp_path / "new" / "x.png")) as saved:
        assert np.array_equal(np.asarray(saved), found.edit("slant", 2).pixels[:, :, 0])


@pytest.mark.parametrize("refiner", ["hfgi", "pti", "sam"])
def test_a_refined_inversion_is_closer_and_edits_of_it_keep_that(digits: lsap.Model, seven: Path, refiner: str) -> None:
    plain, refined = digits.invert(seven, "lsap_e"), digits.invert(seven, f"lsap_e/{refiner}")
    assert refined.method == f"lsap_e/{refiner}"
    assert refined.measures["mse"] < plain.measures["mse"]
    assert np.array_equal(refined.edit("slant", 0).pixels, refined.pixels)
    assert not np.array_equal(refined.edit("slant", 2).pixels, plain.edit("slant", 2).pixels)


def test_saved_codes_are_read_by_the_archives_import(digits: lsap.Model, seven: Path, tmp_path: Path) -> None:
    from tasks.inversion.code_files import read_codes

    found = digits.invert(seven, "e4e")
    read = read_codes(str(found.save_codes(tmp_path / "codes.npz")), digits.config)
    np.testing.assert_array_equal(read.w_plus[0].numpy(), found.codes)


def _on_paper(scale: float, place: tuple[int, int]) -> bytes:
    """A digit of ink on grey paper, as a phone sees it."""
    ink = Image.fromarray(load_split("test").images[17]).resize((int(200 * scale),) * 2, Image.Resampling.BICUBIC)
    paper = Image.new("L", (240, 240), 225)
    paper.paste(60, place, ink)
    file = io.BytesIO()
    paper.save(file, "PNG")
    return file.getvalue()


def test_a_photo_unlike_the_domain_is_told_and_made_alike_when_asked(digits: lsap.Model) -> None:
    photo = digits.photo(_on_paper(0.5, (100, 30)))
    as_it_is, adapted = digits.invert(photo, "lsap_e"), digits.invert(photo, "lsap_e", adapt=True)
    (warning,) = as_it_is.warnings
    assert "looks unlike what the generator of digits makes" in warning and "negative" in warning
    assert adapted.warnings == () and "negative" in adapted.notes[-1]
    assert adapted.measures["mse"] < as_it_is.measures["mse"] / 5


def test_no_word_of_warning_about_a_held_out_digit(digits: lsap.Model, seven: Path) -> None:
    assert digits.invert(seven, "e4e").warnings == ()


def test_a_notebook_sees_the_strip_and_no_markup_of_a_name(digits: lsap.Model, seven: Path) -> None:
    shown = digits.invert(digits.photo(seven, name="<b>.png"), "e4e")._repr_html_()
    assert shown.startswith('<div><img src="data:image/png;base64,')
    assert "&lt;b&gt;" in shown and "<b>" not in shown


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        (lambda model, photo: model.invert(photo, "lsap_x"), r'method "lsap_x" is not known; did you mean "lsap_e"\?'),
        (lambda model, photo: model.invert(photo, "e4e/x"), r'refiner "x" is not known here; wanted one of hfgi'),
        (lambda model, photo: model.invert(photo, "restyle_e4e"), r'domain "digits" has no encoder restyle_e4e'),
        (lambda model, photo: model.invert(photo, "e4e").edit("smile", 2), 'no direction "smile"; wanted slant'),
        (lambda model, photo: model.invert(photo, "e4e").edit("slant"), "has no strength; wanted a number"),
        (lambda model, photo: model.photo(photo.parent.parent / "nothing.png"), "nothing is at"),
        (lambda model, photo: model.photo(np.zeros((3, 8, 8))), r"array float64 \[3, 8, 8\]; wanted uint8"),
        (lambda model, photo: lsap.load("full_scale"), "has no weights of its own"),
        (lambda model, photo: lsap.load("dogs"), 'domain "dogs" is not known'),
    ],
)
def test_what_is_asked_wrongly_is_told(digits: lsap.Model, seven: Path, wrong: Any, told: str) -> None:
    with pytest.raises(Exception, match=told):
        wrong(digits, seven)


def test_a_bad_photo_among_good_ones_is_one_failure(digits: lsap.Model, seven: Path) -> None:
    with pytest.raises(BadImageError, match="wanted: convert it"):
        digits.photo(b"no picture")
    photo = digits.photo(seven)
    assert [one.name for one in digits.invert_all([photo, photo], "e4e") if isinstance(one, lsap.Inversion)] == [
        "seven.png",
        "seven.png",
    ]


@pytest.mark.parametrize("method", ["stylegan2_w_plus", "stylegan2_w_plus/sam"])
def test_numbers_that_are_not_finite_are_no_result(digits: lsap.Model, seven: Path, method: str) -> None:
    with pytest.raises(BadImageError, match=r"seven\.png: ") as caught:
        digits.invert(seven, method, num_steps=3, learning_rate=1e38)
    assert caught.value.reason == "non_finite_loss"


def test_what_half_precision_cannot_keep_is_no_result(
    digits: lsap.Model, seven: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lsap import refining

    def beyond(refiner: Any, refined: Any, noise: Any) -> Any:
        w_plus = refined.w_plus * float("inf")
        return refiner.restore(refining.Embedded(w_plus, noise), refined.arrays())

    monkeypatch.setattr(refining, "as_stored", beyond)
    with pytest.raises(BadImageError, match="cannot be kept in half precision"):
        digits.invert(seven, "lsap_e/sam")


def test_published_weights_that_are_not_there_are_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("LSAP_BACKBONES", str(tmp_path))
    with pytest.raises(MissingWeightsError, match="stylegan2-ffhq-config-f"):
        lsap.load("face")


def test_what_was_found_of_a_generator_is_remembered_and_found_again_when_damaged(
    digits: lsap.Model, seven: Path, caplog: pytest.LogCaptureFixture
) -> None:
    from tasks.settings import Settings

    first = digits.invert(seven, "e4e")
    (anchor,) = (Settings.from_environment().cache_folder / "anchors").glob("*.npz")
    anchor.write_bytes(b"damaged")
    assert lsap.load("digits", device="cpu").invert(seven, "e4e").measures == first.measures
    assert "is found out again" in caplog.text


def test_the_package_is_light_until_a_model_is_loaded() -> None:
    command = "import sys, lsap; print(sorted({'torch', 'prefect', 'ray'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", command], capture_output=True, text=True).stdout.strip() == "[]"
