"""What is kept of a shard while it is worked on: whoever does it again goes on from there, bit for bit."""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import safetensors.numpy
import safetensors.torch
from numpy.typing import NDArray

from lsap_archive import ArchiveNotFoundError, RunWriter, scratch_key
from lsap_core.inversion.inversion import EmbedderState
from tasks.weights.files import read_safetensors

logger = logging.getLogger(__name__)

SAVE_EVERY_SECONDS = 300.0
DIGEST_BYTES = hashlib.sha256().digest_size
PIECE_BYTES = 2**26
"""Finished images are put in pieces of about this size, so that keeping them takes no memory to speak of."""
_STATE, _FINISHED, _FILE = "state-", "finished-", "file."
_PREVIEW = ("preview.", "original.")


@dataclass(frozen=True)
class Finished:
    """Images of a shard that are done.

    Attributes:
        image_ids: which.
        records: columns of the archive for each, JSON values.
        arrays: what the run keeps of them, by name, each [N, ...].
        files: their pictures, where the run keeps those.
        previews: small ones of what was made of each, and of what it was made of, where the command keeps those; an
            empty one where there is none.
    """

    image_ids: list[str]
    records: list[dict[str, Any]]
    arrays: Mapping[str, NDArray[Any]]
    files: Sequence[bytes] = ()
    previews: Sequence[tuple[bytes, bytes]] = ()

    def part(self, start: int, end: int) -> Finished:
        """Some of them."""
        arrays = {name: values[start:end] for name, values in self.arrays.items()}
        records, files, previews = self.records[start:end], self.files[start:end], self.previews[start:end]
        return Finished(self.image_ids[start:end], records, arrays, files, previews)

    def encode(self) -> bytes:
        """As one safetensors file."""
        named = {f"{_FILE}{place:06d}": file for place, file in enumerate(self.files)}
        for kind, of_kind in zip(_PREVIEW, zip(*self.previews, strict=True), strict=False):
            named |= {f"{kind}{place:06d}": file for place, file in enumerate(of_kind)}
        files = {name: np.frombuffer(file, np.uint8) for name, file in named.items()}
        metadata = {"image_ids": json.dumps(self.image_ids), "records": json.dumps(self.records)}
        return safetensors.numpy.save({**self.arrays, **files}, metadata)

    @classmethod
    def decode(cls, data: bytes) -> Finished:
        """What `encode` has made."""
        tensors, metadata = read_safetensors(data)
        arrays = {name: tensor.numpy() for name, tensor in tensors.items()}
        files, *pairs = (
            [arrays.pop(name).tobytes() for name in sorted(arrays) if name.startswith(kind)]
            for kind in (_FILE, *_PREVIEW)
        )
        previews = list(zip(*pairs, strict=True))
        return cls(json.loads(metadata["image_ids"]), json.loads(metadata["records"]), arrays, files, previews)


class KeptWork:
    """What an attempt at a shard leaves for the next one, now and then: finished images, and the batch under way.

    The clock runs over the shard: as long as nothing has been kept for a while, a state or whatever was finished since
    is. Shards that are done sooner keep nothing, and cost one listing.
    """

    def __init__(self, run: RunWriter, shard: int, *, every_seconds: float):
        """What is there of a shard is looked up once."""
        self._store = run.store
        self._run_id, self._shard = run.run_id, shard
        self._every_seconds = every_seconds
        self._last_kept = time.monotonic()
        folder = self._name(_STATE).rpartition("/")[0]
        own = tuple(self._name(kind) for kind in (_STATE, _FINISHED))
        self._keys = {key for key in self._store.keys(folder) if key.startswith(own)}
        self._waiting: list[Callable[[], Finished]] = []

    def finished(self) -> Iterator[Finished]:
        """What earlier attempts have finished and kept."""
        for key in sorted(key for key in self._keys if key.startswith(self._name(_FINISHED))):
            if (data := self._get(key, "its images are done again")) is not None:
                yield Finished.decode(data)

    def restore(self, image_ids: Sequence[str], state: EmbedderState) -> int:
        """Take up what is kept of a batch; returns the step that the state is at then."""
        key = self._key_of(_STATE, image_ids)
        data = self._get(key, "the batch begins again from its first step") if key in self._keys else None
        if data is not None:
            state.load_tensors(safetensors.torch.load(data))
            return state.step
        return 0

    def save_if_due(self, image_ids: Sequence[str], state: EmbedderState) -> None:
        """Keep the state of the batch under way, if the last time that anything was kept is long ago."""
        if self.is_due:
            self._keep_finished()
            self._put(self._key_of(_STATE, image_ids), safetensors.torch.save(state.to_tensors()))
            self._last_kept = time.monotonic()

    def save_instead(self, image_ids: Sequence[str], state: EmbedderState) -> None:
        """Keep the state of a batch that some images have left and others joined, instead of what was kept of it.

        It is there before those that left it are: until then what was kept before is what fits the next attempt.
        """
        key = self._key_of(_STATE, image_ids)
        self._put(key, safetensors.torch.save(state.to_tensors()))
        self._keep_finished()
        for other in sorted(each for each in self._keys if each.startswith(self._name(_STATE)) and each != key):
            self._store.delete(other)
            self._keys.discard(other)
        self._last_kept = time.monotonic()

    def finish(self, batch: Callable[[], Finished], *, waits: bool = False) -> None:
        """Keep a batch that is done, now or when it is due, or where it `waits` with the next state; asked for then."""
        self._waiting.append(batch)
        if self.is_due and not waits:
            self._keep_finished()
            self._last_kept = time.monotonic()

    def remove(self) -> None:
        """Nothing of it is needed any more: the shard is in the archive."""
        for key in sorted(self._keys):
            self._store.delete(key)
        self._keys.clear()

    def _name(self, kind: str) -> str:
        return scratch_key(self._run_id, self._shard, kind)

    @property
    def is_due(self) -> bool:
        """Whether the last time that anything was kept is long ago."""
        return time.monotonic() - self._last_kept > self._every_seconds

    def _keep_finished(self) -> None:
        """Put what waits, piece by piece, and then remove the states of those batches."""
        waiting, self._waiting = self._waiting, []
        for batch in waiting:
            done = batch()
            bytes_each = sum(values[:1].nbytes for values in done.arrays.values())
            size = max(1, PIECE_BYTES // max(bytes_each, 1))
            for start in range(0, len(done.records), size):
                piece = done.part(start, start + size)
                self._put(self._key_of(_FINISHED, piece.image_ids), piece.encode())
            state = self._key_of(_STATE, done.image_ids)
            if state in self._keys:
                self._store.delete(state)
                self._keys.discard(state)

    def _key_of(self, kind: str, image_ids: Sequence[str]) -> str:
        """A key that is named after its images, so that no others take it for their own."""
        return self._name(kind + hashlib.sha256(json.dumps(list(image_ids)).encode()).hexdigest()[:16])

    def _put(self, key: str, data: bytes) -> None:
        """Keep data, and before them what tells that they are whole."""
        self._store.put(key, hashlib.sha256(data).digest() + data)
        self._keys.add(key)

    def _get(self, key: str, otherwise: str) -> bytes | None:
        """What `_put` kept; None where it is gone or damaged."""
        try:
            kept = self._store.get(key)
        except ArchiveNotFoundError:  # another attempt was faster
            return None
        digest, data = kept[:DIGEST_BYTES], kept[DIGEST_BYTES:]
        if hashlib.sha256(data).digest() != digest:
            logger.warning("%s is damaged: %s", self._store.join(key), otherwise)
            return None
        return data
