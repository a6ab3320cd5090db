"""`lsap direction`: what the commands find, write, print and refuse, on the digits. No server, no Ray."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from domains.domain import load_domain
from flows.commands.cli import main
from lsap_archive import ArchiveWriter, Geometry
from lsap_core.editing import Direction, along_component
from lsap_core.images import to_uint8
from tasks.editing.fit_direction import SampleOptions, sampled_codes, score_codes
from tasks.measuring.attributes import EMBEDDED
from tasks.weights.directions import load_components, load_direction, save_direction
from tasks.weights.generators import LoadedGenerator

DONE, ASKED_WRONGLY = 0, 2
GENERATOR = "domains/digits/generator.safetensors"
FIT = ("direction", "fit", "--domain", "digits", "--samples", "400", "--psi", "1", "--ratio", "0.1", "--device", "cpu")


@dataclass(frozen=True)
class Answer:
    """What a command gave back."""

    code: int
    out: str
    err: str

    @property
    def document(self) -> dict[str, Any]:
        assert self.code == DONE, self.err
        found: dict[str, Any] = json.loads(self.out)
        return found

    def is_refused(self, *words: str) -> bool:
        """Exit code 2, one line on stderr with all the words, nothing on stdout."""
        assert self.code == ASKED_WRONGLY and self.out == "" and len(self.err.splitlines()) == 1, self
        assert all(word in self.err for word in words), self.err
        return True


@pytest.fixture
def lsap_here(capsys: pytest.CaptureFixture[str]) -> Callable[..., Answer]:
    """Runs a command in this process."""

    def run(*arguments: Any) -> Answer:
        capsys.readouterr()
        code = main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return Answer(code, captured.out, captured.err)

    return run


def test_a_direction_is_fitted_written_and_reported(
    lsap_here: Callable[..., Answer], tmp_path: Path, digits: LoadedGenerator
) -> None:
    path = tmp_path / "slant.safetensors"
    told = lsap_here(*FIT, "--attribute", "slant", "--out", path, "--json").document
    assert (told["name"], told["solver"], told["num_positive"], told["psi"]) == ("slant", "SVC", 40, 1.0)
    assert told["validation_accuracy"] >= 0.9 and 0 <= told["remaining_accuracy"] <= 1
    assert told["norm"] == pytest.approx(1) and told["generator"] == digits.digest
    assert told["response"]["unit"] == "degrees" and told["response"]["change_in_deviations"] > 0.2
    direction = load_direction(str(path), config=digits.config, generator_digest=digits.digest)
    assert direction.digest == told["digest"] and direction.provenance["response"] == told["response"]
    # More of the direction is more of the attribute, on codes that it was not fitted on.
    codes = torch.cat(list(sampled_codes(digits.generator, SampleOptions(100, 1.0, seed=7))))
    scores = [
        score_codes(digits.generator, codes + strength * direction.vectors, EMBEDDED["slant"], batch_size=100)
        for strength in (-2.0, 0.0, 2.0)
    ]
    means = [score.nanmean().item() for score in scores]
    assert means == sorted(means) and means[2] - means[0] > told["response"]["deviation"]
    # The same command finds the same, byte for byte.
    again = tmp_path / "again.safetensors"
    assert lsap_here(*FIT, "--attribute", "slant", "--out", again).code == DONE
    assert again.read_bytes() == path.read_bytes()
    assert lsap_here(*FIT, "--attribute", "slant", "--out", again).is_refused("exists already")


def test_the_digits_own_directions_move_what_they_are_named_after(digits: LoadedGenerator) -> None:
    codes = torch.cat(list(sampled_codes(digits.generator, SampleOptions(300, 1.0, seed=11))))
    domain = load_domain("digits")
    assert set(domain.directions) == set(domain.attributes)
    for name, place in domain.directions.items():
        direction = load_direction(place, config=digits.config, generator_digest=digits.digest)
        assert direction.name == name and direction.generator == digits.digest
        before, after = (
            score_codes(digits.generator, w, EMBEDDED[name], batch_size=100) for w in (codes, codes + direction.vectors)
        )
        told = direction.provenance["response"]
        assert (after - before).nanmean().item() == pytest.approx(told["change"], rel=0.15)


def test_a_conditional_direction_keeps_the_other_attribute(lsap_here: Callable[..., Answer], tmp_path: Path) -> None:
    free, bound = tmp_path / "free.safetensors", tmp_path / "bound.safetensors"
    lsap_here(*FIT, "--attribute", "stroke_width", "--out", free)
    told = lsap_here(
        *FIT, "--attribute", "slant", "--name", "lean", "--conditional-on", free, "--out", bound, "--json"
    ).document
    assert [one["name"] for one in told["conditional_on"]] == ["stroke_width"] and told["name"] == "lean"
    described = lsap_here("direction", "describe", bound, "--json").document
    assert described["digest"] == told["digest"] and described["norms"] == [1.0]
    assert described["provenance"]["conditional_on"] == told["conditional_on"]
    same = lsap_here(*FIT, "--attribute", "stroke_width", "--conditional-on", free, "--out", tmp_path / "n.safetensors")
    assert same.is_refused('"stroke_width" lies in the span of its conditions')


def test_scores_of_anything_can_be_fitted(
    lsap_here: Callable[..., Answer], tmp_path: Path, digits: LoadedGenerator
) -> None:
    """Samples as files, somebody's own scores of them, and the direction in which these grow."""
    folder = tmp_path / "samples"
    sample = ("direction", "sample", "--domain", "digits", "--samples", "150", "--psi", "1", "--device", "cpu")
    told = lsap_here(*sample, "--out", folder, "--json").document
    assert (told["num_samples"], told["generator"]) == (150, digits.digest)
    codes = torch.from_numpy(np.load(folder / "codes.npy"))
    images = [np.asarray(Image.open(path)) for path in sorted((folder / "images").iterdir())]
    with torch.no_grad():
        np.testing.assert_array_equal(np.stack(images), to_uint8(digits.generator.synthesize(codes))[..., 0])
    assert lsap_here(*sample, "--out", folder).is_refused("exists already")
    (tmp_path / "ink.csv").write_text("score\n" + "\n".join(str(image.mean()) for image in images))
    given = ("--scores", tmp_path / "ink.csv", "--codes", folder / "codes.npy")
    path = tmp_path / "ink.safetensors"
    told = lsap_here(*FIT, *given, "--out", path, "--json").document
    assert told["name"] == "ink" and "response" not in told and told["num_samples"] == 150
    found = load_direction(str(path), config=digits.config, generator_digest=digits.digest)
    with torch.no_grad():
        less, more = (digits.generator.synthesize(codes + far * found.vectors).mean() for far in (-1.0, 1.0))
    assert more > less + 0.05
    (tmp_path / "ink.csv").write_text("score\n" + "2.5\n" * 150)
    refused = lsap_here(*FIT, *given, "--out", tmp_path / "flat.safetensors")
    assert refused.is_refused("do not vary enough", "2.5")
    assert not (tmp_path / "flat.safetensors").exists()


def test_components_are_fitted_and_factorized(
    lsap_here: Callable[..., Answer], tmp_path: Path, digits: LoadedGenerator
) -> None:
    on_digits = ("--domain", "digits", "--device", "cpu", "--json")
    pca, sefa = tmp_path / "pca.safetensors", tmp_path / "sefa.safetensors"
    told = lsap_here("direction", "pca", *on_digits, "--samples", 2000, "--components", 5, "--out", pca).document
    assert (told["components"], told["shape"]) == ("pca", [5, digits.config.w_dim])
    assert told["deviations"] == sorted(told["deviations"], reverse=True)
    told = lsap_here("direction", "factorize", *on_digits, "--convs", 1, 3, "--out", sefa).document
    assert (told["components"], told["layers"]) == ("sefa", [1, 3])
    w = torch.cat(list(sampled_codes(digits.generator, SampleOptions(2000, 1.0))))
    found = load_components(str(pca), config=digits.config, generator_digest=digits.digest)
    torch.testing.assert_close(found.mean, w.mean(dim=0), rtol=0, atol=1e-4)
    torch.testing.assert_close(found.deviations, (w @ found.vectors.T).std(dim=0), rtol=1e-3, atol=1e-3)


def test_a_strip_shows_the_inversion_and_its_edits(
    lsap_here: Callable[..., Answer], tmp_path: Path, two_digits: str, digits: LoadedGenerator
) -> None:
    path, sheet = tmp_path / "d.safetensors", tmp_path / "new" / "sheet.png"
    save_direction(str(path), Direction("d", torch.eye(digits.config.w_dim)[:1], digits.digest))
    apply = ("direction", "apply", two_digits, "--domain", "digits", "--device", "cpu", "--method", "e4e", "--json")
    told = lsap_here(
        *apply, "--image", "bert", "anna", "--direction", path, "--strength", -3, 0, 3, "--layers", 0, 4, "--out", sheet
    ).document
    assert [edit["strength"] for edit in told["edits"]] == [-3.0, 0.0, 3.0]
    assert (told["images"], told["noise"], told["edits"][0]["layers"]) == (["bert", "anna"], "constant", [0, 4])
    pixels = np.asarray(Image.open(sheet))
    width = 96 + 4
    columns = [pixels[20:, pixels.shape[1] - (4 - column) * width :][:, :96] for column in range(4)]
    assert np.array_equal(columns[0], columns[2]) and not np.array_equal(columns[0], columns[3])
    channel = (*apply, "--image", "bert", "--style-channel", 4, 7, "--strength", 0, 9, "--out", sheet)
    edits = lsap_here(*channel).document["edits"]
    assert [(edit["direction"], edit["space"], edit["strength"]) for edit in edits] == [
        ("4_7", "s", 0.0),
        ("4_7", "s", 9.0),
    ]
    pixels = np.asarray(Image.open(sheet))[20:]
    columns = [pixels[:, pixels.shape[1] - (3 - column) * width :][:, :96] for column in range(3)]
    assert np.array_equal(columns[0], columns[1]) and not np.array_equal(columns[0], columns[2])
    assert lsap_here(*channel, "--layers", 0, 4).is_refused("leave them out with --style-channel")


def test_a_strip_along_a_component(
    lsap_here: Callable[..., Answer], tmp_path: Path, two_digits: str, digits: LoadedGenerator
) -> None:
    pca = tmp_path / "pca.safetensors"
    lsap_here("direction", "pca", "--generator", GENERATOR, "--samples", 500, "--components", 3, "--out", pca)
    apply = ("direction", "apply", two_digits, "--generator", GENERATOR, "--method", "e4e", "--image", "anna")
    along = ("--direction", pca, "--strength", 2, "--out", tmp_path / "sheet.png")
    told = lsap_here(*apply, *along, "--component", 1, "--json").document
    components = load_components(str(pca), config=digits.config, generator_digest=digits.digest)
    assert told["edits"] == [along_component(components, 1, 2.0).describe()]
    assert lsap_here(*apply, *along).is_refused("holds components")
    assert lsap_here(*apply, *along, "--mode", "offset").is_refused("--component")


def test_what_was_asked_wrongly_is_refused_before_the_work(
    lsap_here: Callable[..., Answer], tmp_path: Path, two_digits: str
) -> None:
    out = ("--out", tmp_path / "d.safetensors")
    assert lsap_here(*FIT, "--attribute", "beauty", *out).is_refused('"beauty" is not known', "slant")
    assert lsap_here("direction", "fit", "--attribute", "slant", *out).is_refused("--generator", "--domain")
    assert lsap_here(*FIT, "--attribute", "slant", "--out", tmp_path / "d.pt").is_refused(".safetensors")
    assert lsap_here(*FIT, "--scores", "scores.npy", *out).is_refused("--codes")
    assert lsap_here("direction", "describe", tmp_path / "missing.pt").is_refused("missing.pt does not exist")
    strange = tmp_path / "strange.safetensors"
    save_direction(str(strange), Direction("d", torch.ones(1, 64), "4a" * 32))
    sheet = ("--out", tmp_path / "sheet.png")
    apply = ("direction", "apply", two_digits, "--domain", "digits", "--method", "e4e", "--image", "anna")
    assert lsap_here(*apply, "--direction", strange, "--strength", 1, *sheet).is_refused("found on generator 4a4a")
    assert lsap_here(*apply, "--direction", "smile", "--strength", 1, *sheet).is_refused('"smile" is not known')
    assert not (tmp_path / "sheet.png").exists()
    assert lsap_here(*apply, "--direction", strange, "--strength", 1, "--any-generator", *sheet).code == DONE


def test_an_archive_of_another_generator_is_refused(
    lsap_here: Callable[..., Answer], tmp_path: Path, digits: LoadedGenerator
) -> None:
    url = str(tmp_path / "archive")
    geometry = Geometry(num_ws=digits.config.num_ws, w_dim=digits.config.w_dim, noise_sides=digits.config.noise_sizes)
    ArchiveWriter.open(url, generator_digest="4a" * 32, generator_name="other", geometry=geometry)
    apply = ("direction", "apply", url, "--method", "e4e", "--image", "anna", "--direction", "slant", "--strength", 1)
    for words in ((*apply, "--out", tmp_path / "sheet.png"), ("archive", "images", url, "e4e", "--out", tmp_path)):
        refused = lsap_here(*words, "--domain", "digits")
        assert refused.is_refused("holds codes of generator 4a4a", "pass the generator of the archive")
    lying = str(tmp_path / "lying")
    ArchiveWriter.open(lying, generator_digest=digits.digest, generator_name="other", geometry=Geometry(2, 3, ()))
    refused = lsap_here("archive", "images", lying, "e4e", "--domain", "digits", "--out", tmp_path)
    assert refused.is_refused("says that it is of generator", "holds codes of Geometry(num_ws=2, w_dim=3")


def test_what_circulates_becomes_a_file_that_knows_its_generator(
    lsap_here: Callable[..., Answer], tmp_path: Path, digits: LoadedGenerator
) -> None:
    convert = ("direction", "convert", "--domain", "digits", "--device", "cpu", "--json")
    many = {"smile": torch.randn(8, 64), "age": torch.randn(64)}
    torch.save(many, tmp_path / "many.pt")
    told = lsap_here(*convert, f"{tmp_path}/many.pt#smile", "--out", tmp_path / "smile.safetensors").document
    assert (told["name"], told["space"], told["generator"]) == ("smile", "w_plus", digits.digest)
    assert told["provenance"]["converted_from"] == "many.pt#smile" and "warning" not in told["provenance"]
    found = load_direction(str(tmp_path / "smile.safetensors"), config=digits.config, generator_digest=digits.digest)
    assert torch.equal(found.vectors, many["smile"])
    told = lsap_here(*convert, "--style-channel", 3, 7, "--name", "ink", "--out", tmp_path / "s.safetensors").document
    assert (told["name"], told["space"], told["channels"]) == ("ink", "s", {"3 (conv 2, 8 px)": [7]})
    assert lsap_here(*convert, "--style-channel", 3, 99, "--out", tmp_path / "n.safetensors").is_refused("channel 99")
    assert lsap_here(*convert, tmp_path / "many.pt", "--out", tmp_path / "n.safetensors").is_refused("FILE#NAME")
    assert lsap_here(*convert, "--style-channel", 3, 7, "--beta", 1, "--out", tmp_path / "n.safetensors").is_refused(
        "--beta belongs to --text"
    )


def test_a_text_makes_a_direction_of_clips_effects(lsap_here: Callable[..., Answer], tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    np.save(tmp_path / "fs3.npy", rng.normal(size=(336, 512)).astype(np.float32))
    np.save(tmp_path / "old.npy", rng.normal(size=512))
    convert = ("direction", "convert", tmp_path / "fs3.npy", "--domain", "digits", "--device", "cpu")
    out = ("--out", tmp_path / "old.safetensors")
    assert lsap_here(*convert, *out).is_refused("fs3.npy), and no direction", "--text TEXT.npy")
    told = lsap_here(*convert, "--text", tmp_path / "old.npy", "--beta", 2, "--samples", 100, *out, "--json").document
    assert (told["name"], told["space"], told["provenance"]["beta"]) == ("old", "s", 2.0)
    assert (
        lsap_here(*convert, "--text", tmp_path / "fs3.npy", "--name", "a", "--out", tmp_path / "n.safetensors").code
        == 2
    )
