"""One shard in a process of its own, its state saved after every step; REQUEST and SHARD are handed over as globals."""

from tasks.inversion.worker import EmbedWorker

if __name__ == "__main__":
    EmbedWorker(REQUEST, save_every_seconds=0.0)(SHARD)  # noqa: F821
