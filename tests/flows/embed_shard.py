"""One shard in a process of its own, its state saved after every step; SPEC and WORK are handed over as globals."""

from tasks.inversion.worker import EmbedWorker

if __name__ == "__main__":
    EmbedWorker(SPEC, save_every_seconds=0.0).embed(WORK)  # noqa: F821
