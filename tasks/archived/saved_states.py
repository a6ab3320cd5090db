"""States of long batches, kept within their shard now and then: whoever does it again goes on from there."""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Sequence

import safetensors.torch

from lsap_archive import ArchiveNotFoundError, RunWriter, scratch_key
from lsap_core.inversion.inversion import EmbedderState

logger = logging.getLogger(__name__)

SAVE_EVERY_SECONDS = 300.0
DIGEST_BYTES = hashlib.sha256().digest_size


class SavedState:
    """Where the state of a batch is kept while it is worked on."""

    def __init__(self, run: RunWriter, shard: int, image_ids: Sequence[str], *, every_seconds: float):
        """Under a key that is named after its images, so that no other batch takes it for its own."""
        digest = hashlib.sha256(json.dumps(list(image_ids)).encode()).hexdigest()[:16]
        self._store = run.store
        self._key = scratch_key(run.run_id, shard, f"state-{digest}")
        self._every_seconds = every_seconds
        self._last_saved = time.monotonic()

    def restore(self, state: EmbedderState) -> int:
        """Take up what is kept; returns the step that the state is at then."""
        self._last_saved = time.monotonic()
        try:
            saved = self._store.get(self._key)
        except ArchiveNotFoundError:
            return 0
        digest, data = saved[:DIGEST_BYTES], saved[DIGEST_BYTES:]
        if hashlib.sha256(data).digest() != digest:
            logger.warning("%s is damaged: the batch begins again from its first step", self._store.join(self._key))
            return 0
        state.load_tensors(safetensors.torch.load(data))
        return state.step

    def save_if_due(self, state: EmbedderState) -> None:
        """Keep the state, and before it what tells that it is whole, if the last time is long ago."""
        if time.monotonic() - self._last_saved > self._every_seconds:
            data = safetensors.torch.save(state.to_tensors())
            self._store.put(self._key, hashlib.sha256(data).digest() + data)
            self._last_saved = time.monotonic()
