"""The parts of the paper that can be reproduced, and what each of them may be asked for."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Any, Literal, get_args

from pydantic import AfterValidator, Field

from flows.parameters.numbers import MANY_IMAGES, MANY_SHOWN, Count, Index, Number, Seed
from flows.parameters.run_file import Parameters

Part = Literal["table1", "table2", "table3", "table4", "figure3", "figure4", "figure5"]
PARTS: tuple[Part, ...] = get_args(Part)
EQUAL = "_equal"
"""Behind the name of an edit: the same at equal effect."""


class EditParameters(Parameters):
    """One edit of the tables: at one strength for every method, and at equal effect."""

    edit: dict[str, Any] = Field(description="the edit without its strength, such as {direction: slant}")
    strength: Number = Field(description="of every method; LEC is measured with it")
    attribute: str | None = Field(
        None, description="what it changes; each method is also edited so strongly that this changes equally"
    )
    change: Number = Field(1.0, description="at equal effect, in standard deviations of the attribute")


class Figure4Parameters(Parameters):
    """Which codes figure 4 shows."""

    layer: Index = Field(0, description="row of W+, and style vector; the paper does not say which")
    entries: tuple[Index, Index] = Field((0, 1), description="the two entries that are drawn")
    samples: Count | None = Field(None, le=MANY_IMAGES, description="synthetic codes; as many as images by default")
    seed: Seed = Field(0, description="of the synthetic codes")


class SheetParameters(Parameters):
    """Which images figures 3 and 5 show, and by which methods."""

    images: Count = Field(6, le=MANY_SHOWN, description="how many, spread evenly over the source")
    methods: tuple[str, ...] | None = Field(
        None, description="of figure 5 the run's by default, of figure 3 those that are refined, each before and after"
    )


def _checked_refined(names: tuple[str, ...]) -> tuple[str, ...]:
    for name in names:
        if name.count("/") != 1 or not all(name.split("/")):
            raise ValueError(f'"{name}" is no refined method; wanted an embedding and its refiner, such as e4e/hfgi')
    if len(set(names)) != len(names):
        raise ValueError(f"{', '.join(names)} names a refined method twice")
    return names


RefinedNames = Annotated[tuple[str, ...], AfterValidator(_checked_refined)]
"""Refined methods by embedding and refiner, such as "e4e/hfgi"."""


class PaperParts(Parameters):
    """Which tables and figures of the paper are wanted, and which methods and edits stand in them."""

    parts: tuple[Part, ...] = Field(PARTS, min_length=1, description='what "all" means')
    methods: tuple[str, ...] = Field(
        ("psp", "e4e", "lsap_e", "stylegan2_w", "lsap_o_w", "stylegan2_w_plus", "lsap_o_w_plus"),
        min_length=1,
        description="rows of Table 1",
    )
    refined: RefinedNames = Field(
        (),
        description="rows of the second stage in Table 1, and in Table 4 those of its embeddings: an embedding and its "
        "refiner each, such as e4e/hfgi",
    )
    compared: tuple[str, ...] = Field(
        ("psp", "e4e", "lsap_e"), min_length=1, description="encoders of Table 2 and Figure 4"
    )
    table4: tuple[str, ...] = Field(("e4e", "lsap_e"), min_length=1, description="rows of Table 4, embeddings")
    edits: dict[str, EditParameters] = Field(default_factory=dict, description="edits by name")
    figure3: SheetParameters = SheetParameters()
    figure4: Figure4Parameters = Figure4Parameters()
    figure5: SheetParameters = SheetParameters()

    def rows(self, part: Part) -> tuple[str, ...]:
        """Methods that a part shows of the images, in order: embeddings, and refined ones such as "e4e/hfgi"."""
        shown: dict[Part, tuple[str, ...]] = {
            "table1": (*self.methods, *self.refined),
            "table4": (*self.table4, *(name for name in self.refined if embedding_of(name) in self.table4)),
            "figure3": self.figure3.methods or self._before_and_after(),
            "figure4": self.compared,
            "figure5": self.figure5.methods or self.methods,
        }
        return shown.get(part, ())

    def inverted(self, parts: Iterable[Part]) -> tuple[str, ...]:
        """Methods whose inversions these parts need."""
        return tuple(dict.fromkeys(embedding_of(name) for part in parts for name in self.rows(part)))

    def refinements(self, parts: Iterable[Part]) -> tuple[str, ...]:
        """Refined methods that these parts need."""
        return tuple(dict.fromkeys(name for part in parts for name in self.rows(part) if name != embedding_of(name)))

    def edited(self, parts: Iterable[Part]) -> tuple[str, ...]:
        """Methods whose edits these parts need."""
        return self._rows_of({"table1", "figure3", "figure5"} & set(parts)) if self.edits else ()

    def measured(self, parts: Iterable[Part]) -> tuple[str, ...]:
        """Methods and edits that these parts measure."""
        parts = set(parts)
        methods = self._rows_of({"table1", "table4"} & parts)
        if "table1" not in parts:
            return methods
        edits = [
            name + suffix for name, each in self.edits.items() for suffix in ("", EQUAL)[: 1 + bool(each.attribute)]
        ]
        return (*methods, *(f"{method}/{edit}" for method in self.rows("table1") for edit in edits))

    def _rows_of(self, parts: set[str]) -> tuple[str, ...]:
        """Methods that some parts show, without repetition."""
        return tuple(dict.fromkeys(name for part in PARTS if part in parts for name in self.rows(part)))

    def _before_and_after(self) -> tuple[str, ...]:
        """Every embedding that is refined, and behind it its refinements."""
        before = dict.fromkeys(map(embedding_of, self.refined))
        return tuple(
            name
            for embedding in before
            for name in (embedding, *(one for one in self.refined if embedding_of(one) == embedding))
        )


def embedding_of(name: str) -> str:
    """The embedding of a method: "e4e" of "e4e/hfgi", and of "e4e" itself."""
    return name.partition("/")[0]
