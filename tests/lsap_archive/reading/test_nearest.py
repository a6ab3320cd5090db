"""Nearest codes: what float32 proposes is what float64 answers, in every space, from memory, in blocks, by an index."""

from __future__ import annotations

import sys
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any, get_args

import numpy as np
import pyarrow as pa
import pytest

from lsap_archive import (
    ArchiveMismatchError,
    ArchiveNotFoundError,
    CorruptArchiveError,
    Metric,
    PlannedRow,
    Space,
    StyleLayers,
    about_answer,
    build_index,
    open_archive,
    repair_archive,
    verify_archive,
)
from lsap_archive.format.code_index import CodeIndex
from lsap_archive.reading import whole_shards
from lsap_archive.reading.arrays import open_published
from lsap_archive.reading.nearest import exact, memory, stored
from lsap_archive.reading.nearest.exact import Block, nearest_in
from lsap_archive.reading.nearest.spaces import Vectors, distances

SPACES: tuple[Space, ...] = get_args(Space)
METRICS: tuple[Metric, ...] = get_args(Metric)
NUM_IMAGES = 60


def some_layers(seed: int = 0, **changes: Any) -> StyleLayers:
    """For K = 2, D = 3: widths 4 and 2."""
    rng = np.random.default_rng(seed)
    weights = tuple(rng.standard_normal((width, 3)).astype(np.float32) for width in (4, 2))
    biases = tuple(rng.standard_normal(width).astype(np.float32) for width in (4, 2))
    return replace(StyleLayers("9f86d081", weights, biases), **changes)


@pytest.fixture
def place(memory_place: Any, work: Any) -> Any:
    """60 images in shards of 16, and the style layers."""
    rows = tuple(PlannedRow(row, f"image-{row:02d}", f"/{row}.png", f"{row:064x}") for row in range(NUM_IMAGES))
    writer = memory_place.writer()
    run = writer.start_run(work.plan(rows=rows, shard_rows=16))
    work.write_all(run)
    assert run.publish({}) and writer.put_style_layers(some_layers())
    return memory_place


def spread(kind: str, rng: np.random.Generator) -> np.ndarray:
    """Vectors [300, 40] that are hard in a way of their own."""
    noise = rng.standard_normal((300, 40))
    return {
        "plain": noise,
        "far from 0": 1000 + 1e-3 * noise,
        "twice": np.repeat(noise[:100], 3, axis=0),
        "alike": np.repeat(noise[:1], 300, axis=0),
        "beyond float32": noise * 1e25,
        "small": noise * 1e-30,
        "zeros": noise * (rng.random((300, 1)) < 0.5),
        "few values": rng.integers(0, 2, (300, 40)) - 0.0,
    }[kind].astype(np.float32)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize(
    "kind", ["plain", "far from 0", "twice", "alike", "beyond float32", "small", "zeros", "few values"]
)
def test_what_is_found_is_what_comparing_all_in_float64_finds(kind: str, metric: Metric) -> None:
    """All that are as near as the k-th are among them, whatever float32 makes of the distances."""
    rng = np.random.default_rng(0)
    vectors = spread(kind, rng)
    targets = np.concatenate([vectors[:3].astype(np.float64), vectors[3:5] * 1.001 + 1e-9])
    blocks = [Block.of(np.arange(at, at + 100), vectors[at : at + 100]) for at in (200, 0, 100)]
    for found, target in zip(nearest_in(blocks, targets, 10, metric), targets, strict=True):
        wanted = distances(vectors, target, metric)
        limit = np.sort(wanted)[9]
        assert sorted(found.positions.tolist()) == np.flatnonzero(wanted <= limit).tolist()
        np.testing.assert_array_equal(found.distances, wanted[found.positions])


def test_few_vectors_are_compared_in_float64(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 20,000 random codes some tens; else the bound would be of no use."""
    compared: list[int] = []

    def counted(vectors: np.ndarray, *others: Any) -> np.ndarray:
        compared.append(len(vectors))
        return distances(vectors, *others)

    monkeypatch.setattr(exact, "distances", counted)
    vectors = np.random.default_rng(0).standard_normal((20_000, 512)).astype(np.float32)
    nearest_in([Block.of(np.arange(20_000), vectors)], np.ones((1, 512)), 10, "euclidean")
    assert 10 <= sum(compared) < 50


def by_definition(codes: np.ndarray, space: Space, metric: Metric, target: np.ndarray) -> np.ndarray:
    """Distances in float64, each as its formula is written."""

    def vectors(some: np.ndarray) -> list[np.ndarray]:
        if space == "w_plus":
            return [some.reshape(len(some), -1)]
        if space == "w":
            return [some.mean(axis=1)]
        layers = some_layers()
        styles = [some[:, row] @ layers.weights[row].T + layers.biases[row] for row in range(2)]
        return [one / np.linalg.norm(one, axis=1, keepdims=True) for one in styles]

    parts = list(zip(vectors(codes), vectors(target[None]), strict=True))
    if metric == "euclidean":
        return np.sqrt(sum(np.square(a - b).sum(axis=1) for a, b in parts))
    cosines = [(a @ b[0]) / (np.linalg.norm(a, axis=1) * np.linalg.norm(b)) for a, b in parts]
    return np.mean([1 - one for one in cosines], axis=0)  # type: ignore[no-any-return]


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize("room", ["memory", "none"])
def test_every_space_and_metric_is_what_its_formula_says(
    place: Any, space: Space, metric: Metric, room: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if room == "none":
        monkeypatch.setattr(stored, "share_of_memory", lambda: 100)
    archive = open_archive(place.url)
    ids = [f"image-{row:02d}" for row in range(NUM_IMAGES)]
    codes = archive.codes(ids, "lsap_o").astype(np.float64)
    target = codes[7] + 0.1
    wanted = by_definition(codes, space, metric, target)
    found = archive.nearest(target, 5, "lsap_o", space=space, metric=metric)
    assert found.column("image_id").to_pylist() == [ids[row] for row in np.argsort(wanted)[:5]]
    np.testing.assert_allclose(found.column("distance"), np.sort(wanted)[:5], rtol=1e-4, atol=1e-7)
    own = archive.nearest(codes[7], 1, "lsap_o", space=space, metric=metric).to_pylist()[0]
    assert (own["image_id"], own["distance"]) == ("image-07", 0.0)
    about = about_answer(found)
    assert (about["space"], about["metric"], about["answer"]) == (space, metric, "exact")
    assert ("read again for each question" in about.get("note", "")) == (room == "none")


def test_equal_distances_are_in_the_order_of_the_ids(memory_place: Any, work: Any) -> None:
    names = ["d", "b", "e", "a", "c"]
    rows = tuple(PlannedRow(row, name, f"/{name}", f"{row:064x}") for row, name in enumerate(names))
    run = memory_place.writer().start_run(work.plan(rows=rows, arrays=work.plan().arrays[:1]))
    for shard in range(3):
        size = len(run.rows_of(shard))
        table = pa.table({"status": ["ok"] * size})
        run.write_shard(shard, {"w_plus": np.ones((size, 2, 3), np.float32)}, table, "a")
    run.publish({})
    found = open_archive(memory_place.url).nearest(np.zeros(3), 3, "lsap_o")
    assert found.column("image_id").to_pylist() == ["a", "b", "c"]


def test_several_are_asked_about_at_once(place: Any) -> None:
    archive = open_archive(place.url)
    ids = ["image-31", "image-02"]
    codes = archive.codes(ids, "lsap_o")
    one_by_one = [archive.nearest(code, 4, "lsap_o", space="w").to_pylist() for code in codes]
    batch = archive.nearest(codes, 4, "lsap_o", space="w")
    assert batch.column("query").to_pylist() == [0] * 4 + [1] * 4
    assert batch.drop_columns("query").to_pylist() == one_by_one[0] + one_by_one[1]
    named = archive.nearest_to_images(ids, 4, "lsap_o", space="w")
    assert named.column("query").to_pylist() == [ids[0]] * 4 + [ids[1]] * 4
    assert named.drop_columns("query").equals(batch.drop_columns("query"))


def test_codes_are_read_once_by_all_threads(place: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = open_archive(place.url)
    read: list[int] = []
    whole = whole_shards.decoded_shard
    monkeypatch.setattr(
        "lsap_archive.reading.array_values.decoded_shard", lambda *given: read.append(1) or whole(*given)
    )
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: archive.nearest(np.zeros(3), 3, "lsap_o"), range(16)))
    assert len(read) == 4 and all(one.equals(answers[0]) for one in answers)
    archive.nearest(np.ones(3), 3, "lsap_o", stay=False)
    assert len(read) == 4


def test_codes_and_rows_leave_memory_with_their_archive(place: Any) -> None:
    archive = open_archive(place.url)
    archive.nearest(np.zeros(3), 3, "lsap_o")
    archive.sql("select count(*) from latest")
    block = weakref.ref(archive.nearest_codes.resident("lsap_o", "w_plus"))
    rows = weakref.ref(archive._runs.rows)
    assert block() is not None and rows() is not None
    del archive
    assert block() is None and rows() is None


def test_what_was_not_asked_for_the_longest_makes_room(place: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = open_archive(place.url)
    codes = archive.nearest_codes
    assert codes.resident("lsap_o", "w_plus") is not None and codes.resident("lsap_o", "w") is not None
    codes.resident("lsap_o", "w_plus")  # now "w" is older
    monkeypatch.setattr(stored, "share_of_memory", lambda: 1600)  # of "w_plus" and "s_n" 2400 are wanted, of "w" 1680
    assert codes.resident("lsap_o", "s_n") is not None
    assert codes._resident.get("lsap_o", "w") is None and codes._resident.get("lsap_o", "w_plus") is not None
    monkeypatch.setattr(stored, "share_of_memory", lambda: 0)  # no room, whatever goes: nothing does
    wide = some_layers(weights=(np.ones((900, 3), np.float32),) * 2, biases=(np.ones(900, np.float32),) * 2)
    assert codes._resident.keep("x", "s_n", codes.stored("lsap_o"), Vectors("s_n", archive.geometry, wide)) is None
    assert codes._resident.get("lsap_o", "w_plus") is not None


def test_room_is_half_of_what_a_container_may_still_take(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, text in (("max", "1000000"), ("current", "700000"), ("stat", "anon 300000\ninactive_file 500000")):
        (tmp_path / f"memory.{name}").write_text(text + "\n")
    monkeypatch.setattr(memory, "_CGROUP", tmp_path)
    assert memory.share_of_memory() == 400_000
    (tmp_path / "memory.max").write_text("max\n")
    assert memory.share_of_memory() > 10**6


# What S^N needs.


def test_an_archive_without_style_layers_says_what_adds_them(
    memory_place: Any, published: Callable[[Any], Any]
) -> None:
    published(memory_place)
    with pytest.raises(ArchiveNotFoundError, match="any `lsap run invert` into this archive adds them"):
        open_archive(memory_place.url).nearest(np.zeros(3), 1, "lsap_o", space="s_n")


@pytest.mark.parametrize(
    ("layers", "told"),
    [
        (some_layers(generator_digest="another"), "of generator another"),
        (some_layers(weights=(np.ones((4, 3), np.float32), np.ones((2, 5), np.float32))), "are wanted"),
        (some_layers(weights=(np.ones((4, 3), np.float32),), biases=(np.ones(4, np.float32),)), "are wanted"),
        (some_layers(biases=(np.full(4, np.nan, np.float32), np.ones(2, np.float32))), "not finite"),
    ],
)
def test_layers_that_do_not_fit_are_not_kept(memory_place: Any, layers: StyleLayers, told: str) -> None:
    with pytest.raises(ArchiveMismatchError, match=told):
        memory_place.writer().put_style_layers(layers)


def test_damaged_layers_are_noticed_taken_away_and_written_again(place: Any) -> None:
    (key,) = place.store.keys("styles")
    data = place.store.get(key)
    place.store.put(key, data[:400] + bytes([data[400] ^ 1]) + data[401:])
    with pytest.raises(CorruptArchiveError, match=f"{key}.*its name says other content"):
        open_archive(place.url).nearest(np.zeros(3), 1, "lsap_o", space="s_n")
    assert [one.key for one in verify_archive(place.url).problems] == [key]
    report = repair_archive(place.url)
    assert report.removed == [key] and "lsap run invert" in report.next_commands
    assert place.writer().put_style_layers(some_layers()) and place.store.get(key) == data
    assert not place.writer().put_style_layers(some_layers())
    assert verify_archive(place.url).is_sound


# Indexes.


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("space", SPACES)
def test_an_index_that_proposes_all_codes_answers_exactly(place: Any, space: Space, metric: Metric) -> None:
    info = build_index(place.url, "lsap_o", space=space, metric=metric)
    assert (info.num_codes, info.num_asked, info.recall) == (NUM_IMAGES, NUM_IMAGES, 1.0)
    for stay in (True, False):
        archive = open_archive(place.url)
        asked: dict[str, Any] = {"space": space, "metric": metric, "stay": stay}
        found = archive.nearest(np.ones(3), 5, "lsap_o", approximate=True, **asked)
        assert found.equals(archive.nearest(np.ones(3), 5, "lsap_o", **asked))
        assert about_answer(found)["answer"] == "approximate" and about_answer(found)["recall"] == 1.0


def test_an_index_proposes_the_near_ones_and_its_recall_is_measured(
    place: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lsap_archive.reading.nearest.index.CANDIDATES", 12)
    monkeypatch.setattr("lsap_archive.reading.nearest.index._CANDIDATES_EACH", 1)
    info = build_index(place.url, "lsap_o")
    assert 12 / NUM_IMAGES + 0.2 < info.recall < 1  # more than by chance
    archive = open_archive(place.url)
    near = archive.nearest_to_images([f"image-{row:02d}" for row in range(NUM_IMAGES)], 11, "lsap_o", approximate=True)
    all_near = archive.nearest_to_images(near.column("query").unique().to_pylist(), 11, "lsap_o")
    pairs, all_pairs = ({(one["query"], one["image_id"]) for one in table.to_pylist()} for table in (near, all_near))
    others = {pair for pair in all_pairs if pair[0] != pair[1]}
    assert len(pairs & others) / len(others) == pytest.approx(info.recall)


def test_an_index_of_older_codes_is_noticed_and_replaced(place: Any, work: Any) -> None:
    archive = open_archive(place.url)
    with pytest.raises(ArchiveNotFoundError, match="has no index of lsap_o in w_plus by euclidean: make one with"):
        archive.nearest(np.zeros(3), 1, "lsap_o", approximate=True)
    build_index(place.url, "lsap_o", metric="cosine")
    build_index(place.url, "lsap_o")
    (old,) = set(place.store.keys("indexes")) - {
        f"indexes/{build_index(place.url, 'lsap_o', metric='cosine').kept_as}.npz"
    }
    more = place.writer().start_run(work.plan("run-2", rows=(PlannedRow(0, "later", "/later", "f" * 64),)))
    work.write_all(more)
    more.publish({})
    assert archive.nearest(np.zeros(3), 1, "lsap_o", approximate=True).num_rows == 1  # a snapshot
    with pytest.raises(ArchiveNotFoundError, match="an index of codes before others were added or retired"):
        open_archive(place.url).nearest(np.zeros(3), 1, "lsap_o", approximate=True)
    assert verify_archive(place.url).is_sound
    build_index(place.url, "lsap_o")
    assert len(place.store.keys("indexes")) == 2 and not place.store.exists(old)  # that by cosine stays
    assert open_archive(place.url).nearest(np.zeros(3), 1, "lsap_o", approximate=True).num_rows == 1


def test_a_damaged_index_is_noticed_and_taken_away(place: Any) -> None:
    key = f"indexes/{build_index(place.url, 'lsap_o').kept_as}.npz"
    data = place.store.get(key)
    for damaged in (data[:100] + bytes([data[100] ^ 1]) + data[101:], data[:-30], b""):
        place.store.put(key, damaged)
        with pytest.raises(CorruptArchiveError, match=key):
            open_archive(place.url).nearest(np.zeros(3), 1, "lsap_o", approximate=True)
    assert [one.key for one in verify_archive(place.url).problems] == [key]
    report = repair_archive(place.url)
    assert report.removed == [key] and report.next_commands == ["lsap-archive index"]
    assert verify_archive(place.url).is_sound


def test_an_index_that_this_library_cannot_read_is_refused(place: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    key = f"indexes/{build_index(place.url, 'lsap_o').kept_as}.npz"
    index = CodeIndex.decode(place.store.get(key), key[8:-4], key)
    narrow = replace(index, codes=np.ascontiguousarray(index.codes[:, 1:]))
    older = replace(index, info=replace(index.info, library="faiss 1.2"))
    for changed, told in ((narrow, "make it again"), (older, "was made by faiss 1.2, this is faiss")):
        place.store.put(key, changed.encode())
        with pytest.raises(ArchiveMismatchError, match=told):
            open_archive(place.url).nearest(np.zeros(3), 1, "lsap_o", approximate=True)
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(ArchiveMismatchError, match=r"pip install 'lsap-archive\[index\]'"):
        build_index(place.url, "lsap_o")
    assert open_archive(place.url).nearest(np.zeros(3), 1, "lsap_o").num_rows == 1


# Reading whole shards.


@pytest.mark.parametrize("compression", ["lz4_bits", "zstd_bytes"])
def test_a_whole_shard_is_what_zarr_reads(memory_place: Any, work: Any, compression: str) -> None:
    arrays = (replace(work.plan().arrays[0], compression=compression, chunk_rows=2),)
    run = memory_place.writer().start_run(work.plan(arrays=arrays, shard_rows=4))
    for shard in range(2):
        assert run.write_shard(shard, {"w_plus": work.arrays(run, shard)["w_plus"]}, work.rows(run, shard), "a")
    run.publish({})
    archive = open_archive(memory_place.url)
    array = archive.array("run-1", "w_plus")
    for shard, count in ((0, 4), (1, 1)):
        data = memory_place.store.get(f"runs/run-1/w_plus/c/{shard}/0/0")
        found = whole_shards.decoded_shard(array, data, "w_plus")
        assert found is not None
        np.testing.assert_array_equal(found[:count], np.asarray(array[4 * shard : 4 * shard + count]))
    assert np.isnan(found[2:]).all()
    with pytest.raises(CorruptArchiveError, match="w_plus cannot be decoded"):
        whole_shards.decoded_shard(array, data[:4] + b"\xff\xff\xff\x7f" + data[8:], "w_plus")
    assert open_published(archive._runs.objects[0], "w_plus").shape == array.shape


def test_vectors_know_their_size(memory_place: Any) -> None:
    geometry = memory_place.writer().geometry
    sizes = [Vectors(space, geometry, some_layers()).size for space in SPACES]
    assert sizes == [6, 3, 6]
    codes = np.random.default_rng(0).standard_normal((5, 2, 3))
    assert [Vectors(space, geometry, some_layers()).of(codes).shape[1] for space in SPACES] == sizes
