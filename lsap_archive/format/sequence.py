"""Which manifest came after which, without asking a clock: numbers that the store gives out, each once.

A number is a create-only key, so two writers never get the same one, and a writer gets a higher number than every
manifest that was there when it asked. A number that was given and not used, because its writer was killed, is skipped.
"""

from __future__ import annotations

from lsap_archive.format.documents import encode_document
from lsap_archive.format.layout import SEQUENCE_PREFIX, sequence_key
from lsap_archive.stores.store import Store


def next_sequence(store: Store, of: str) -> int:
    """A number above all that were given out before, from 1.

    Args:
        store: the archive.
        of: the run or evaluation that is about to be published.
    """
    names = [key.rsplit("/", 1)[1].removesuffix(".json") for key in store.keys(SEQUENCE_PREFIX)]
    number = 1 + max((int(name) for name in names if name.isdecimal()), default=0)
    while not store.create(sequence_key(number), sequence_document(of)):
        number += 1
    return number


def given_sequence(store: Store, of: str) -> int:
    """The number that a run was given before, the highest if there are several; 0 if it was given none."""
    for key in reversed(store.keys(SEQUENCE_PREFIX)):
        if store.get(key) == sequence_document(of):
            return int(key.rsplit("/", 1)[1].removesuffix(".json"))
    return 0


def sequence_document(of: str) -> bytes:
    """What stands under a number: who got it."""
    return encode_document({"of": of}, SEQUENCE_PREFIX)
