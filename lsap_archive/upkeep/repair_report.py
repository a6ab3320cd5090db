"""What a repair did, or would do."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from lsap_archive.format.subject import Subject

_DONE = {"invert": "inverted", "refine": "refined", "edit": "edited"}


@dataclass
class RepairedRun:
    """What became of a run.

    Attributes:
        method: of the run, empty where that cannot be read any more.
        flow: which flow makes it: "invert", "refine" or "edit".
        restored: objects that got back the bytes that were written.
        retired_shards: shards that readers do not see any more.
        images: images of these shards, which the next run makes again.
    """

    method: str = ""
    flow: str = "invert"
    restored: int = 0
    retired_shards: list[int] = field(default_factory=list)
    images: int = 0


def flow_of(subject: Subject | None) -> str:
    """Which flow makes a run."""
    if subject is None:
        return "invert"
    return "edit" if subject.is_edit else "refine"


@dataclass
class RepairReport:
    """What repair_archive did.

    Attributes:
        url: the archive.
        dry_run: whether nothing was written, and this is what would be done.
        runs: what became of the runs that were damaged, by id.
        restored: keys of objects that got back the bytes that were written.
        retired: what readers do not see any more: shards, runs, evaluations.
        removed: keys of objects that no reader saw yet; the run that goes on makes them again.
        counted_once: what older runs have with the same content, and readers see only there from now on.
        made_of_them: edits and evaluations of what counts elsewhere now; that may lack them.
        given_up: unfinished runs whose images readers see all in other runs, and what was asked to be given up.
        copied: keys of objects that were sound and have a copy now.
        has_refinements: whether the archive has any, which follow their inversions.
        left: problems that repair cannot mend, one sentence each.
    """

    url: str
    dry_run: bool
    runs: dict[str, RepairedRun] = field(default_factory=dict)
    restored: list[str] = field(default_factory=list)
    retired: list[str] = field(default_factory=list)
    removed: list[str] = field(default_factory=list)
    counted_once: list[str] = field(default_factory=list)
    made_of_them: list[str] = field(default_factory=list)
    given_up: list[str] = field(default_factory=list)
    copied: list[str] = field(default_factory=list)
    left: list[str] = field(default_factory=list)
    has_refinements: bool = False

    def run(self, run_id: str) -> RepairedRun:
        """What became of a run; an empty account to be filled if nothing did yet."""
        return self.runs.setdefault(run_id, RepairedRun())

    @property
    def next_commands(self) -> list[str]:
        """What to run now, so that what is missing is made again."""
        runs = self.runs.values()
        unpublished = [key for key in self.removed if key.startswith(("runs/", "anchors/", "styles/"))]
        commands = []
        gone = [name for name in self.retired if name.startswith("runs/")]
        lost_by = {run.flow for run in runs if run.images}
        if unpublished or gone or "invert" in lost_by:
            commands.append("lsap run invert")
        made_of_them = [key for key in self.made_of_them if key.startswith("runs/")]
        if "refine" in lost_by or (self.has_refinements and (commands or made_of_them)):
            commands.append("lsap run refine")
        if commands or "edit" in lost_by or made_of_them or "calibrations/" in "".join(self.removed):
            commands.append("lsap run edit")
        lost = [*self.retired, *self.removed, *self.given_up, *self.made_of_them]
        if commands or any("evaluations/" in name or name.startswith("sets/") for name in lost):
            commands.append("lsap run evaluate")
        if any(key.startswith("indexes/") for key in self.removed):
            commands.append("lsap-archive index")
        return commands

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON values."""
        return {**asdict(self), "next_commands": self.next_commands}

    def summary(self) -> str:
        """For people; where names may hold line breaks, `lines` keeps them apart."""
        return "\n".join(self.lines())

    def lines(self) -> list[str]:
        """The lines of the summary."""
        done = "would be " if self.dry_run else ""
        lines = []
        for run_id, run in self.runs.items():
            lines.append(
                f"run {run_id}: {run.restored} objects {done}restored, {len(run.retired_shards)} shards {done}retired "
                f"({', '.join(map(str, run.retired_shards)) or 'none'}), {run.images} images will be "
                f"{_DONE[run.flow]} again"
            )
        for told, names in (
            ("restored", self.restored),
            ("retired", self.retired),
            ("removed, to be made again", self.removed),
            ("counted once", self.counted_once),
            ("given up", self.given_up),
        ):
            lines += [f"{done}{told}: {name}" for name in names]
        lines += [f"{done}copied for repair: {len(self.copied)} objects"] if self.copied else []
        lines += [f"cannot be mended: {sentence}" for sentence in self.left]
        if not lines:
            return [f"{self.url}: nothing to repair"]
        if commands := self.next_commands:
            lines.append(f"now run what made the archive once more, with its run files: {', then '.join(commands)}")
        return lines
