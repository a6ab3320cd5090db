"""Files of directions and components: ours, those in circulation, and those that are refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import Tensor

from lsap_core.editing import Components, Direction, StyleDirection, factorize, fit_pca
from lsap_core.errors import CheckpointError, ConfigError, ShapeError
from lsap_core.generators.config import GeneratorConfig
from lsap_core.generators.generator import style_widths
from lsap_core.spaces.styles import style_positions
from tasks.weights.described_directions import describe_direction
from tasks.weights.directions import (
    UNKNOWN_GENERATOR,
    load_any_direction,
    load_components,
    load_direction,
    save_components,
    save_direction,
)
from tasks.weights.generators import load_generator

HOSTILE = Path(__file__).parents[2] / "reference" / "pickles" / "hostile" / "hostile_checkpoint.pt"
FACES = GeneratorConfig.config_f(1024)  # 18 rows of 512
CONFIG = GeneratorConfig(32, (8, 8, 8, 8), z_dim=6, w_dim=8, image_channels=1)
OURS, OTHER = "9f" * 32, "4a" * 32


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def load(path: Path | str, **changes: Any) -> Direction:
    return load_direction(str(path), **{"config": CONFIG, "generator_digest": OURS, **changes})


@pytest.fixture
def direction() -> Direction:
    return Direction("slant", numbers(1, 8), OURS, "w", {"found_by": "interfacegan", "seed": 0})


@pytest.fixture
def pca() -> Components:
    return fit_pca([numbers(50, 8)], num_components=3, generator=OURS, provenance={"seed": 0})


# --- our own files ------------------------------------------------------------------------------------


def test_a_direction_comes_back_as_it_was_saved(tmp_path: Path, direction: Direction) -> None:
    save_direction(str(tmp_path / "new" / "d.safetensors"), direction)
    loaded = load(tmp_path / "new" / "d.safetensors")
    assert torch.equal(loaded.vectors, direction.vectors)
    assert (loaded.name, loaded.generator, loaded.space) == ("slant", OURS, "w")
    assert (loaded.provenance, loaded.digest) == (direction.provenance, direction.digest)
    many = replace(direction, vectors=numbers(8, 8), space="w_plus")
    save_direction(str(tmp_path / "many.safetensors"), many)
    assert torch.equal(load(tmp_path / "many.safetensors").vectors, many.vectors)


@pytest.mark.parametrize("kind", ["pca", "sefa"])
def test_components_come_back_as_they_were_saved(
    kind: str, tmp_path: Path, pca: Components, generator_file: str
) -> None:
    generator = load_generator(generator_file)
    components = pca if kind == "pca" else factorize(generator.generator, [1, 3], digest=OURS)
    save_components(str(tmp_path / "c.safetensors"), components)
    loaded = load_components(str(tmp_path / "c.safetensors"), config=CONFIG, generator_digest=OURS)
    for name in ("vectors", "deviations", "eigenvalues", "mean"):
        ours, theirs = getattr(components, name), getattr(loaded, name)
        assert (ours is None and theirs is None) or torch.equal(ours, theirs), name
    assert (loaded.kind, loaded.layers, loaded.digest) == (kind, components.layers, components.digest)
    assert loaded.provenance == components.provenance and loaded.generator == OURS


def test_equal_directions_are_equal_files(tmp_path: Path, direction: Direction) -> None:
    for name in ("a", "b"):
        save_direction(str(tmp_path / f"{name}.safetensors"), replace(direction))
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()
    assert torch.equal(safetensors.torch.load_file(tmp_path / "a.safetensors")["vectors"], direction.vectors)


def test_a_file_is_written_once_and_by_its_suffix(tmp_path: Path, direction: Direction, pca: Components) -> None:
    with pytest.raises(CheckpointError, match=r"d\.pt does not end in \.safetensors"):
        save_direction(str(tmp_path / "d.pt"), direction)
    save_components(str(tmp_path / "d.safetensors"), pca)
    with pytest.raises(CheckpointError, match="exists already"):
        save_direction(str(tmp_path / "d.safetensors"), direction)


def test_a_file_whose_numbers_were_changed_is_refused(tmp_path: Path, direction: Direction) -> None:
    path = tmp_path / "d.safetensors"
    save_direction(str(path), direction)
    path.write_bytes(path.read_bytes()[:-1] + b"\x01")
    with pytest.raises(CheckpointError, match=r"d\.safetensors: it is damaged.*was written"):
        load(path)


# --- whose direction it is ----------------------------------------------------------------------------


def test_a_direction_of_another_generator_is_refused_unless_asked_for(tmp_path: Path, direction: Direction) -> None:
    path = tmp_path / "d.safetensors"
    save_direction(str(path), replace(direction, generator=OTHER))
    with pytest.raises(CheckpointError, match=r"found on generator 4a4a.*this is 9f9f.*lsap direction fit"):
        load(path)
    loaded = load(path, any_generator=True)
    assert loaded.generator == OTHER and loaded.provenance["warning"].startswith("found on generator 4a4a")


def test_components_of_another_generator_are_refused_unless_asked_for(tmp_path: Path, pca: Components) -> None:
    path = str(tmp_path / "c.safetensors")
    save_components(path, replace(pca, generator=OTHER))
    with pytest.raises(CheckpointError, match="found on generator 4a4a"):
        load_components(path, config=CONFIG, generator_digest=OURS)
    loaded = load_components(path, config=CONFIG, generator_digest=OURS, any_generator=True)
    assert "warning" in loaded.provenance


def test_a_direction_of_other_sizes_is_refused(tmp_path: Path, direction: Direction) -> None:
    path = tmp_path / "d.safetensors"
    save_direction(str(path), replace(direction, vectors=numbers(1, 512)))
    with pytest.raises(ShapeError, match=r'd\.safetensors: direction "slant" is \[1, 512\].*wants width 8'):
        load(path, any_generator=True)


# --- files in circulation -----------------------------------------------------------------------------


def _torch(values: Tensor, path: Path) -> Path:
    torch.save(values, path.with_suffix(".pt"))
    return path.with_suffix(".pt")


def _numpy(values: Tensor, path: Path) -> Path:
    np.save(path.with_suffix(".npy"), values.numpy())
    return path.with_suffix(".npy")


def _npz(values: Tensor, path: Path) -> Path:
    np.savez(path.with_suffix(".npz"), boundary=values.numpy())
    return path.with_suffix(".npz")


@pytest.mark.parametrize("write", [_torch, _numpy, _npz])
@pytest.mark.parametrize(("shape", "rows"), [((1, 512), 1), ((512,), 1), ((1, 18, 512), 18), ((18, 512), 18)], ids=str)
def test_released_shapes_are_read(
    write: Callable[[Tensor, Path], Path], shape: tuple[int, ...], rows: int, tmp_path: Path
) -> None:
    values = numbers(*shape)
    loaded = load(write(values, tmp_path / "age"), config=FACES)
    assert torch.equal(loaded.vectors, values.reshape(rows, 512))
    assert (loaded.name, loaded.generator) == ("age", None)
    assert loaded.provenance["warning"] == UNKNOWN_GENERATOR and len(loaded.provenance["file_sha256"]) == 64


def test_a_direction_of_equal_rows_fits_generators_of_other_sizes(tmp_path: Path) -> None:
    row = numbers(1, 1, 512)
    path = _torch(row.expand(1, 18, 512).clone(), tmp_path / "pose")
    for resolution in (1024, 256):
        assert torch.equal(load(path, config=GeneratorConfig.config_f(resolution)).vectors, row[0])
    different = _torch(numbers(1, 18, 512), tmp_path / "csc")
    with pytest.raises(ShapeError, match="18 different rows; this generator has 14"):
        load(different, config=GeneratorConfig.config_f(256))


@pytest.mark.parametrize("suffix", ["pt", "npz"])
def test_components_of_ganspace_are_read(suffix: str, tmp_path: Path) -> None:
    document = {"mean": numbers(1, 512), "comp": numbers(80, 1, 512, seed=1), "std": numbers(80, seed=2).abs()}
    path = tmp_path / f"ffhq_pca.{suffix}"
    if suffix == "pt":
        torch.save(document, path)
    else:
        np.savez(path, **{name: values.numpy() for name, values in document.items()})
    loaded = load_components(str(path), config=FACES, generator_digest=OURS)
    assert torch.equal(loaded.vectors, document["comp"][:, 0]) and torch.equal(loaded.mean, document["mean"][0])
    assert torch.equal(loaded.deviations, document["std"]) and loaded.kind == "pca"
    assert loaded.provenance["warning"] == UNKNOWN_GENERATOR
    with pytest.raises(CheckpointError, match="holds components, not one direction"):
        load(path, config=FACES)


@pytest.mark.parametrize("shape", [(1, -1), (-1,), (1, 1, -1)])
@pytest.mark.parametrize("write", [_torch, _numpy, _npz])
def test_a_boundary_whose_rows_were_flattened_is_that_of_the_rows(
    write: Callable[[Tensor, Path], Path], shape: tuple[int, ...], tmp_path: Path
) -> None:
    rows = numbers(18, 512)
    wanted = load(_torch(rows, tmp_path / "rows"), config=FACES)
    loaded = load(write(rows.reshape(shape), tmp_path / "flat"), config=FACES)
    assert (loaded.digest, loaded.space) == (wanted.digest, "w_plus")
    assert loaded.provenance["note"] == "flattened: its 18 rows of 512 stood one after the other"
    with pytest.raises(ShapeError, match=r"\[1, 9216\]; this generator wants width 512"):
        load(
            tmp_path / "flat.npz" if write is _npz else write(rows.reshape(shape), tmp_path / "flat"),
            config=GeneratorConfig.config_f(256),
        )


def test_a_vector_of_the_width_of_w_stays_one_of_w(tmp_path: Path) -> None:
    """Also where K * D of another generator would be as long: 8 rows of 64 are 512 numbers."""
    path = _numpy(numbers(1, 512), tmp_path / "age")
    assert load(path, config=FACES).space == "w"
    small = GeneratorConfig(32, (64, 64, 32, 16), z_dim=64, w_dim=64, image_channels=1)
    assert load(path, config=small).vectors.shape == (8, 64)


def test_every_number_format_is_the_same_direction(tmp_path: Path) -> None:
    values = numbers(8).numpy()
    digests = set()
    for dtype in ("<f4", ">f4", "<f8", ">f8"):
        np.save(tmp_path / "d.npy", values.astype(dtype))
        digests.add(load(tmp_path / "d.npy").digest)
    np.save(tmp_path / "f.npy", np.asfortranarray(np.stack([values] * 8).astype(">f4")))
    digests.add(load(tmp_path / "f.npy").digest)
    assert len(digests) == 1
    np.save(tmp_path / "half.npy", values.astype(">f2"))
    assert torch.equal(load(tmp_path / "half.npy").vectors[0], torch.from_numpy(values.astype(np.float16)).float())


def test_ganspaces_own_cache_is_the_components_that_editors_pass_on(tmp_path: Path) -> None:
    comp, mean, std = numbers(80, 1, 512).numpy(), numbers(1, 512, seed=1).numpy(), numbers(80, seed=2).abs().numpy()
    np.savez(tmp_path / "passed_on.npz", comp=comp, mean=mean, std=std)
    own = {"lat_comp": comp, "lat_mean": mean[:, None], "lat_stdev": std, "var_ratio": std, "random_stdevs": std}
    np.savez_compressed(tmp_path / "own.npz", **own, act_comp=2 * comp, act_mean=mean, act_stdev=std)
    one, two = (
        load_components(str(tmp_path / f"{name}.npz"), config=FACES, generator_digest=OURS)
        for name in ("passed_on", "own")
    )
    assert one.digest == two.digest and one.kind == two.kind == "pca"
    assert two.provenance["layout"] == "GANSpace's own cache" and "note" not in two.provenance
    np.savez(tmp_path / "z.npz", **{**own, "lat_mean": 0 * mean, "lat_stdev": 0 * std + 1})
    assert "as in Z" in describe_direction(str(tmp_path / "z.npz"))["provenance"]["note"]


@pytest.mark.parametrize("with_values", [True, False])
def test_factors_of_the_weights_are_components(with_values: bool, tmp_path: Path) -> None:
    """rosinality's closed-form factorization keeps directions as columns, SeFa as rows."""
    factors = torch.linalg.qr(numbers(8, 8))[0]
    values = {"eigval": torch.arange(8.0)} if with_values else {}
    torch.save({"ckpt": "550000.pt", "eigvec": factors, **values}, tmp_path / "factor.pt")
    np.savez(tmp_path / "sefa.npz", boundaries=factors.T.numpy(), eigen_values=np.arange(8.0), layers=np.arange(4))
    found = load_components(str(tmp_path / "factor.pt"), config=CONFIG, generator_digest=OURS)
    assert (found.kind, found.layers) == ("sefa", None) and torch.equal(found.vectors, factors.T)
    assert found.eigenvalues is None or torch.equal(found.eigenvalues, torch.arange(8.0))
    assert found.digest == load_components(str(tmp_path / "sefa.npz"), config=CONFIG, generator_digest=OURS).digest
    assert describe_direction(str(tmp_path / "factor.pt"))["components"] == "sefa"
    save_components(str(tmp_path / "c.safetensors"), found)
    saved = load_components(str(tmp_path / "c.safetensors"), config=CONFIG, generator_digest=OURS)
    assert saved.digest == found.digest


# --- many in one file ---------------------------------------------------------------------------------


def test_one_of_many_directions_is_chosen_by_name(tmp_path: Path) -> None:
    many = {"age": numbers(1, 8), "smile": numbers(8, 8, seed=1), "eyes.open": numbers(8, seed=2)}
    torch.save({"directions": many, "resolution": 32, "author": "somebody"}, tmp_path / "many.pt")
    np.savez(tmp_path / "many.npz", **{name: values.numpy() for name, values in many.items()})
    for name, values in many.items():
        for file in (f"many.pt#directions.{name}", f"many.npz#{name}"):
            loaded = load(f"{tmp_path}/{file}")
            assert torch.equal(loaded.vectors, values.reshape(-1, 8)) and loaded.name.endswith(name)
    with pytest.raises(CheckpointError, match=r"3 directions \(age, smile, eyes.open\): choose one, as FILE#NAME"):
        load(tmp_path / "many.npz")
    with pytest.raises(CheckpointError, match=r'many.npz#pose: .*and none is "pose"'):
        load(f"{tmp_path}/many.npz#pose")
    told = describe_direction(str(tmp_path / "many.npz"))
    assert told["kind"] == "directions" and list(told["directions"]) == list(many)
    assert told["directions"]["smile"]["digest"] == load(f"{tmp_path}/many.npz#smile").digest


def test_company_of_a_direction_is_no_other_direction(tmp_path: Path) -> None:
    boundary = numbers(1, 8)
    torch.save({"boundary": boundary, "bias": torch.ones(1), "accuracy": 0.9, "name": "age"}, tmp_path / "svm.pt")
    assert torch.equal(load(tmp_path / "svm.pt").vectors, boundary)
    np.savez(tmp_path / "mixed.npz", age=boundary.numpy(), relevance=numbers(6048, 8).numpy())
    told = describe_direction(str(tmp_path / "mixed.npz"))["directions"]
    assert told["age"]["shape"] == [1, 8] and "no generator has 6048 rows" in told["relevance"]["problem"]


def test_one_of_many_directions_in_an_array_is_chosen_by_its_index(tmp_path: Path) -> None:
    values = numbers(25, 8)
    path = _numpy(values, tmp_path / "found")
    assert torch.equal(load(f"{path}#24").vectors, values[24:])
    for entry in ("25", "smile", "-1"):
        with pytest.raises(CheckpointError, match=f'"{entry}" was asked for; wanted an index from 0 to 24'):
            load(f"{path}#{entry}")
    with pytest.raises(ShapeError, match=r"no generator has 25 rows.*name one, FILE#0 to FILE#24"):
        describe_direction(str(path))


def test_a_number_sign_in_a_files_own_name_is_no_choice(tmp_path: Path, direction: Direction) -> None:
    (tmp_path / "take#2").mkdir()
    save_direction(str(tmp_path / "take#2" / "d.safetensors"), direction)
    assert load(tmp_path / "take#2" / "d.safetensors").digest == direction.digest
    with pytest.raises(CheckpointError, match="leave #slant out"):
        load(f"{tmp_path}/take#2/d.safetensors#slant")


# --- directions in S ----------------------------------------------------------------------------------


UNEVEN = GeneratorConfig(32, (12, 10, 8, 6), z_dim=6, w_dim=8, image_channels=1)


@pytest.mark.parametrize("style_set", ["full", "authors", "conv"])
@pytest.mark.parametrize("how", ["list", "npz", "flat", "entry"])
def test_style_vectors_are_a_direction_in_s(style_set: Any, how: str, tmp_path: Path) -> None:
    positions = style_positions(UNEVEN, style_set)
    vectors = [numbers(1, style_widths(UNEVEN)[at], seed=at) for at in positions]
    place = f"{tmp_path}/styles.npz" if how == "npz" else f"{tmp_path}/styles.pt"
    if how == "npz":
        np.savez(place, *[vector.numpy() for vector in vectors])
    elif how == "flat":
        torch.save(torch.cat(vectors, dim=1), place)
    elif how == "list":
        torch.save([vector[0] for vector in vectors], place)
    else:
        torch.save({"afro": vectors, "bob": vectors}, place)
        place = f"{place}#afro"
    found = load_any_direction(place, config=UNEVEN, generator_digest=OURS)
    assert isinstance(found, StyleDirection) and tuple(found.vectors) == positions
    assert all(torch.equal(found.vectors[at], one[0]) for at, one in zip(positions, vectors, strict=True))
    with pytest.raises(CheckpointError, match="holds a direction in S, and one in W or W"):
        load(place, config=UNEVEN)
    assert describe_direction(place, UNEVEN)["space"] == "s"
    alone = describe_direction(place)
    assert alone["space"] == ("w, w_plus or s" if how == "flat" else "s") and json.loads(json.dumps(alone)) == alone


def test_a_list_of_the_rows_of_a_code_is_one_in_w_plus(tmp_path: Path) -> None:
    rows = numbers(8, 8)
    torch.save(list(rows), tmp_path / "rows.pt")
    assert torch.equal(load(tmp_path / "rows.pt").vectors, rows)
    assert describe_direction(str(tmp_path / "rows.pt"))["space"] == "w_plus or s"


# --- what is refused ----------------------------------------------------------------------------------


def test_a_file_that_is_no_direction_is_refused_with_its_name(tmp_path: Path, direction: Direction) -> None:
    def refuse(name: str, content: bytes, match: str) -> None:
        (tmp_path / name).write_bytes(content)
        with pytest.raises((CheckpointError, ShapeError), match=f"{name}: .*{match}"):
            load(tmp_path / name)

    refuse("empty.pt", b"", "empty")
    refuse("page.pt", b"<!doctype html><title>Quota exceeded</title>", "web page")
    refuse("pointer.npy", b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull")
    refuse("cut.npy", b"\x93NUMPY\x01\x00v\x00", "NumPy cannot read it")
    objects, batch = tmp_path / "o.npy", tmp_path / "b.npy"
    np.save(objects, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    refuse("objects.npy", objects.read_bytes(), "plain numbers")
    np.save(batch, np.ones((2, 3, 8)))
    refuse("batch.npy", batch.read_bytes(), r"\[2, 3, 8\]")
    torch.save({"a": torch.ones(8), "b": torch.ones(8)}, tmp_path / "t.pt")
    refuse("two.pt", (tmp_path / "t.pt").read_bytes(), r"2 directions \(a, b\): choose one, as FILE#NAME")
    torch.save("age", tmp_path / "t.pt")
    refuse("text.pt", (tmp_path / "t.pt").read_bytes(), "holds a str")
    refuse("network.safetensors", safetensors.torch.save({"w": torch.ones(8)}), 'kind "none"')
    future = safetensors.torch.save({"vectors": torch.ones(1, 8)}, {"kind": "direction", "format_version": "2"})
    refuse("future.safetensors", future, "format version is 2")
    with pytest.raises(CheckpointError, match=r"missing\.pt does not exist"):
        load(tmp_path / "missing.pt")


def test_a_file_runs_nothing(tmp_path: Path) -> None:
    shutil.copy(HOSTILE, tmp_path / "age.pt")
    with pytest.raises(CheckpointError, match=r"age\.pt: .*refused"):
        load(tmp_path / "age.pt")


def test_values_that_are_no_direction_are_refused_with_the_files_name(tmp_path: Path) -> None:
    for values in (torch.zeros(1, 8), torch.full((1, 8), torch.nan)):
        with pytest.raises(ConfigError, match=r"d\.pt: direction"):
            load(_torch(values, tmp_path / "d"))


def test_a_direction_is_no_components(tmp_path: Path, direction: Direction, pca: Components) -> None:
    ours, theirs = tmp_path / "d.safetensors", tmp_path / "c.safetensors"
    save_direction(str(ours), direction)
    save_components(str(theirs), pca)
    with pytest.raises(CheckpointError, match="one direction, not components"):
        load_components(str(ours), config=CONFIG, generator_digest=OURS)
    with pytest.raises(CheckpointError, match="components, not one direction"):
        load(theirs)
    with pytest.raises(ShapeError, match="width 8; this generator wants 512"):
        load_components(str(theirs), config=FACES, generator_digest=OURS)


# --- descriptions -------------------------------------------------------------------------------------


def test_descriptions_are_plain_values(tmp_path: Path, direction: Direction, pca: Components) -> None:
    save_direction(str(tmp_path / "d.safetensors"), direction)
    save_components(str(tmp_path / "c.safetensors"), pca)
    ours = describe_direction(str(tmp_path / "d.safetensors"))
    assert (ours["kind"], ours["shape"], ours["generator"]) == ("direction", [1, 8], OURS)
    assert ours["norms"] == pytest.approx([direction.vectors.norm().item()], abs=1e-5)
    theirs = describe_direction(str(_torch(numbers(1, 18, 512), tmp_path / "csc")))
    assert (theirs["shape"], theirs["space"]) == ([18, 512], "w_plus")
    assert theirs["provenance"]["warning"] == UNKNOWN_GENERATOR
    several = describe_direction(str(tmp_path / "c.safetensors"))
    assert (several["components"], several["shape"]) == ("pca", [3, 8])
    assert several["deviations"] == pytest.approx(pca.deviations.tolist(), abs=1e-4)
    flat = describe_direction(str(_numpy(numbers(1, 512), tmp_path / "flat")))
    assert "it may be K rows of w_plus (K * D = 512)" in flat["provenance"]["note"] and flat["space"] != "w"
    assert describe_direction(str(tmp_path / "flat.npy"), FACES)["space"] == "w"
    for one in (ours, theirs, several, flat):
        assert json.loads(json.dumps(one)) == one


# --- directions in S as files of ours -----------------------------------------------------------------


def test_a_direction_in_s_comes_back_as_it_was_saved(tmp_path: Path) -> None:
    place = str(tmp_path / "d.safetensors")
    vectors = {4: numbers(10), 9: numbers(6, seed=1)}
    saved = StyleDirection("hair", vectors, OURS, {"style_channel": [4, 7]})
    save_direction(place, saved)
    found = load_any_direction(place, config=UNEVEN, generator_digest=OURS)
    assert isinstance(found, StyleDirection) and found.digest == saved.digest
    assert (found.name, found.generator, found.provenance) == ("hair", OURS, saved.provenance)
    assert all(torch.equal(found.vectors[at], vector) for at, vector in vectors.items())
    told = describe_direction(place, UNEVEN)
    assert (told["space"], told["generator"]) == ("s", OURS) and "warning" not in told["provenance"]
    assert told["channels"] == {"4 (ToRGB, 8 px)": "10 of 10", "9 (conv 6, 32 px)": [0, 1, 2, 3, 4, 5]}
    with pytest.raises(CheckpointError, match="found on generator 9f9f"):
        load_any_direction(place, config=UNEVEN, generator_digest=OTHER)
    with pytest.raises(ShapeError, match="10 channels at layer 4 of S; this generator has 8 channels there"):
        load_any_direction(place, config=CONFIG, generator_digest=OURS)
    with pytest.raises(CheckpointError, match="holds a direction in S, and one in W or W"):
        load(place, config=UNEVEN)
    Path(place).write_bytes(Path(place).read_bytes()[:-1] + b"\x01")
    with pytest.raises(CheckpointError, match="it is damaged"):
        load_any_direction(place, config=UNEVEN, generator_digest=OURS)


# --- what has the shape of a direction and is none ----------------------------------------------------


@pytest.mark.parametrize(
    ("document", "match"),
    [
        (np.zeros((16, 512), np.uint8), "of bytes, as images and masks are"),
        (np.zeros((64, 64, 3), np.float32), "Codes of images are no directions"),
        (numbers(5, 18, 512), "Codes of images are no directions"),
        (numbers(6048, 512), r"fs3\.npy\), and no direction: .*lsap direction convert"),
        ({"latent_avg": numbers(512)}, r'a mean code \("latent_avg"\)'),
        ({"w": numbers(1, 18, 512)}, r'codes of images \("w"\).*lsap archive import'),
        ({"a.png": {"latent": numbers(18, 512), "noise": []}}, r'codes of images \("a.png.latent"\)'),
        ({"act_comp": numbers(80, 512), "act_mean": numbers(1, 512), "act_stdev": numbers(80)}, "layer's activations"),
        ({"eigvec": numbers(512, 512)[:, 0]}, "wanted components"),
    ],
)
@pytest.mark.parametrize("config", [None, FACES])
def test_what_only_looks_like_a_direction_is_never_called_one(
    document: Any, match: str, config: GeneratorConfig | None, tmp_path: Path
) -> None:
    torch.save(document, tmp_path / "d.pt")
    with pytest.raises((CheckpointError, ShapeError), match=match):
        describe_direction(str(tmp_path / "d.pt"), config)


def test_a_row_of_clips_effects_is_no_direction(tmp_path: Path) -> None:
    path = _numpy(numbers(6048, 512), tmp_path / "fs3")
    with pytest.raises(ShapeError, match="and no direction"):
        load(f"{path}#3", config=FACES)


def test_codes_beside_directions_are_company(tmp_path: Path) -> None:
    torch.save({"age": numbers(512), "latent_avg": numbers(512, seed=1)}, tmp_path / "d.pt")
    assert torch.equal(load(tmp_path / "d.pt", config=FACES).vectors[0], numbers(512))
    np.savez(tmp_path / "svm.npz", w=numbers(1, 512).numpy(), intercept=np.ones(1))
    assert load(tmp_path / "svm.npz", config=FACES).space == "w"


def test_components_of_another_width_are_none_of_this_generator(tmp_path: Path, pca: Components) -> None:
    save_components(str(tmp_path / "c.safetensors"), pca)
    with pytest.raises(ShapeError, match="width 8; this generator wants 512"):
        describe_direction(str(tmp_path / "c.safetensors"), FACES)
