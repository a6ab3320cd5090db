"""Which program wrote a file of weights, known by the tensors in it, at whatever entry they stand.

`LAYOUTS` is the whole of what is known. A network is found by one tensor that its layout always has; what stands
before that tensor's name (`module.`, `G_ema.`, `generator.`) and the entries above it are wrapping. Later layouts do
not get what an earlier one has claimed.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from torch import Tensor

from lsap_core.errors import CheckpointError
from lsap_core.generators.checkpoints.canonical import CanonicalCheckpoint
from lsap_core.generators.checkpoints.nvlabs import (
    from_nvlabs,
    from_nvlabs_document,
    from_nvlabs_network,
    modules_of,
    records_of,
)
from lsap_core.generators.checkpoints.renamed import RENAMINGS, from_renamed
from lsap_core.generators.checkpoints.rosinality import OWN_ENTRY, from_rosinality, from_rosinality_document
from lsap_core.generators.checkpoints.tensorflow import from_tensorflow_document, is_tensorflow
from lsap_core.generators.checkpoints.unpickling import PersistentNode

MAX_DEPTH = 6
AVERAGED = re.compile(r"(?:^|[\W_])ema(?:$|[\W_])|smooth|averag|^gs$")
"""Names of entries and modules under which programs keep the average of a generator's weights."""
RAW = frozenset({"g", "netg"})
"""Names of generators in the middle of a training, whose average is what is wanted."""
MEANS = ("latent_avg", "w_avg", "mean_latent")
ASSUMED = "assumed, as the file cannot say it: "
NO_MEAN = "the file has no mean of W: it is estimated from samples where one is needed"
WRAPPING = re.compile(r"(?:^|(?<=\.))(?:module|_orig_mod)\.")
"""What distributed training and compilation put before names, wherever it stands."""


@dataclass(frozen=True)
class Layout:
    """How one program names the tensors of a network.

    Attributes:
        name: short.
        program: who writes it.
        sign: a tensor that every network of this layout has.
        others: beginnings of names that it has as well.
        way_out: what to do with a file of it, where it cannot be read; empty where it can.
    """

    name: str
    program: str
    sign: str
    others: tuple[str, ...] = ()
    way_out: str = ""


_OTHER_NETWORK = "its codes are no W+ of StyleGAN2, so it cannot be used"

LAYOUTS = (
    Layout("eg3d", "EG3D (NVlabs/eg3d)", "backbone.synthesis.b4.const", way_out=_OTHER_NETWORK),
    Layout("stylegan3", "StyleGAN3 or StyleGAN-XL", "synthesis.input.freqs", way_out=_OTHER_NETWORK),
    Layout("stylegan3", "StyleGAN3 or StyleGAN-XL", "synthesis.input.weight", way_out=_OTHER_NETWORK),
    Layout("styleswin", "StyleSwin (microsoft/StyleSwin)", "input.input", ("layers.0.blocks.",), _OTHER_NETWORK),
    Layout("swagan", "SWAGAN (rosinality/stylegan2-pytorch)", "input.input", ("to_rgbs.0.iwt.",), _OTHER_NETWORK),
    Layout("nvlabs", "NVlabs/stylegan2-ada-pytorch, NVlabs/stylegan3 for StyleGAN2, PTI", "synthesis.b4.const"),
    Layout("rosinality", "rosinality/stylegan2-pytorch", "input.input", ("conv1.conv.",)),
    Layout("rosinality", "rosinality/stylegan2-pytorch", "input.input", ("style.1.",)),
    Layout("lsap", "this library, `state_dict` alone", "synthesis.const", ("synthesis.convs.",)),
    Layout("genforce", "GenForce", "synthesis.early_layer.const", ("truncation.",)),
    Layout("genforce", "GenForce", "synthesis.early_layer.const", ("synthesis.upsample.",)),
    Layout("hammer", "Hammer (bytedance/Hammer)", "synthesis.early_layer.const", ("synthesis.filter",)),
    Layout(
        "genforce",
        "GenForce or Hammer",
        "synthesis.early_layer.const",
        way_out="both have these names with other numbers, and what tells them apart (truncation.w_avg or "
        "synthesis.filter) is missing, so pass the file that their program saved",
    ),
    Layout(
        "mmgeneration", "MMGeneration or MMagic", "style_mapping.1.linear.weight_orig", ("constant_input.", "conv1.")
    ),
    Layout("lucidrains", "lucidrains/stylegan2-pytorch", "initial_block", way_out=_OTHER_NETWORK),
    Layout("lightweight-gan", "lucidrains/lightweight-gan", "initial_conv.0.weight", way_out=_OTHER_NETWORK),
    Layout("fastgan", "FastGAN or Projected GAN", "init.init.0.weight_orig", way_out=_OTHER_NETWORK),
    Layout("fastgan", "FastGAN or Projected GAN", "init.init.0.weight", way_out=_OTHER_NETWORK),
    Layout(
        "stylegan1", "StyleGAN of 2018 (style-based-gan-pytorch)", "progression.0.conv1.input", way_out=_OTHER_NETWORK
    ),
)
"""Every layout of a generator that is known, in the order in which they are tried."""


@dataclass(frozen=True)
class FoundNetwork:
    """A network in a document.

    Attributes:
        layout: of its tensors.
        place: entries and modules above it, such as `state_dict.G_ema`; empty at the top.
        tensors: by name without wrapping; empty where `node` is given.
        node: the network as a persistent object of NVlabs' classes.
        mean: what the entries above it call the mean of W.
        entry: the mapping that holds the network's own one.
    """

    layout: Layout
    place: str
    tensors: Mapping[str, Any]
    node: PersistentNode | None = None
    mean: Any = None
    entry: Mapping[Any, Any] | None = None

    @property
    def rank(self) -> Literal[0, 1, 2, 3]:
        """0 for an average, 1 for a network that stands alone, 2 beside an encoder, 3 in the middle of a training."""
        parts = self.place.lower().split(".")
        if any(AVERAGED.search(part) for part in parts):
            return 0
        if parts[-1] in RAW:
            return 3
        return 2 if parts[-1] == "decoder" else 1


def from_generator_document(document: object, *, label: int | None = None) -> tuple[str, CanonicalCheckpoint]:
    """The name of the layout, and the generator that stands anywhere in a document.

    Args:
        document: what `read_torch` or `read_pickle` found in a file.
        label: the class of a conditional generator, from 0; None for the mean over its classes.

    Raises:
        CheckpointError: there is none, or one of a program whose files cannot be read, which is named; or its tensors
            do not fit.
    """
    if is_tensorflow(document):
        return "tensorflow", _without_label(from_tensorflow_document(document), label)
    networks = find_networks(document)
    known = [network for network in networks if not network.layout.way_out and network.rank < 2]
    if not known:
        _refuse(document, networks)
    best = min(network.rank for network in known)
    chosen, *others = [network for network in known if network.rank == best]
    if others:
        places = ", ".join(network.place or "(top)" for network in (chosen, *others))
        raise CheckpointError(f"the file holds several generators ({places}): save one of them alone")
    checkpoint = _read(chosen, label)
    notes = list(checkpoint.notes)
    if rest := [network.place or "(top)" for network in known if network is not chosen]:
        notes.append(f"the entry {chosen.place} was read; the file holds {', '.join(rest)} too")
    if bool(checkpoint.state["mapping.w_avg"].isnan().all()):
        notes.append(NO_MEAN)
    return chosen.layout.name, replace(checkpoint, notes=tuple(dict.fromkeys(notes)))


def find_networks(document: object) -> list[FoundNetwork]:
    """Every network of a known layout in a document, in its order."""
    return list(_walk(document, "", None, None, MAX_DEPTH))


def describe_generator_in(document: object) -> str | None:
    """What generator a document holds, in words, for whoever passed it as something else; None where none is known."""
    for network in find_networks(document):
        way_out = network.layout.way_out or "pass the file as the generator"
        return f"the weights of a generator of {network.layout.program}: {way_out}"
    return None


def _walk(value: object, place: str, mean: Any, entry: Mapping[Any, Any] | None, depth: int) -> Iterator[FoundNetwork]:
    if isinstance(value, PersistentNode):
        yield from _in_node(value, place)
    if not isinstance(value, Mapping) or depth == 0:
        return
    mean = next((value[name] for name in MEANS if isinstance(value.get(name), Tensor)), mean)
    tensors = {plain_name(name): tensor for name, tensor in value.items() if isinstance(tensor, Tensor)}
    for layout, prefix in _known_in(tensors):
        inside = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
        own = {name: tensor for name, tensor in inside.items() if name not in MEANS}
        nearest = next((inside[name] for name in MEANS if name in inside), mean)
        yield FoundNetwork(layout, f"{place}.{prefix}".strip("."), own, mean=nearest, entry=entry)
    for name, inner in value.items():
        yield from _walk(inner, f"{place}.{plain_name(name)}".strip("."), mean, value, depth - 1)


def _in_node(node: PersistentNode, place: str) -> Iterator[FoundNetwork]:
    try:
        names = [name for name, _ in records_of(dict(modules_of(node, place)), place)]
    except CheckpointError:
        names = []  # whoever reads it has the words
    for layout, prefix in _known_in(names):
        if prefix == "":
            yield FoundNetwork(layout, place, {}, node)


def _known_in(names: Mapping[str, Any] | list[str]) -> Iterator[tuple[Layout, str]]:
    """Layouts of the networks that a set of tensors holds, each with what stands before its names."""
    claimed: set[str] = set()
    for layout in LAYOUTS:
        for name in names:
            if not name.endswith(layout.sign) or name in claimed:
                continue
            prefix = name.removesuffix(layout.sign)
            if prefix and not prefix.endswith("."):
                continue
            if all(any(other.startswith(prefix + begin) for other in names) for begin in layout.others):
                claimed.add(name)
                yield layout, prefix


def plain_name(name: object) -> str:
    """A name without the `module.` of distributed training, wherever it stands."""
    return WRAPPING.sub("", str(name)[:500])


def _read(network: FoundNetwork, label: int | None) -> CanonicalCheckpoint:
    if network.node is not None:
        return from_nvlabs_network(network.node, network.place or "the network", label=label)
    if network.layout.name == "nvlabs":
        checkpoint = from_nvlabs(network.tensors, label=label)
        return replace(checkpoint, notes=(*checkpoint.notes, _assumed(checkpoint)))
    mean = network.mean
    if isinstance(mean, Tensor) and mean.ndim == 2 and len(mean) > 1:
        # A mean for each row is the mean of W only where all rows are equal.
        mean = mean[0] if bool((mean == mean[:1]).all()) else None
    if network.layout.name in RENAMINGS:
        renaming = RENAMINGS[network.layout.name]
        checkpoint = _without_label(from_renamed(network.tensors, renaming, mean), label)
        return replace(checkpoint, notes=(*checkpoint.notes, _assumed(checkpoint), *renaming.notes))
    if network.entry is not None and OWN_ENTRY in network.entry:
        checkpoint = from_rosinality_document(
            {"g_ema": network.tensors, "latent_avg": mean, OWN_ENTRY: network.entry[OWN_ENTRY]}
        )
    else:
        checkpoint = from_rosinality(network.tensors, mean)
    return _without_label(checkpoint, label)


def _assumed(checkpoint: CanonicalCheckpoint) -> str:
    return (
        f"{ASSUMED}no conv_clamp, and {checkpoint.config.mapping_lr_multiplier:g} as the multiplier of the mapping "
        "network; if it was trained with others, write a file that says so: lsap generator convert FILE OUT.safetensors"
        " --conv-clamp 256 --mapping-lr-multiplier 0.01"
    )


def _without_label(checkpoint: CanonicalCheckpoint, label: int | None) -> CanonicalCheckpoint:
    if label is not None:
        raise CheckpointError(f"label {label} was asked of a generator without classes: leave label out")
    return checkpoint


def _refuse(document: object, networks: list[FoundNetwork]) -> None:
    """Say what a document holds that is no generator which can be read."""
    for network in networks:
        if network.layout.way_out:
            raise CheckpointError(
                f"it holds the weights of {network.layout.program}, which cannot be read: {network.layout.way_out}"
            )
    holds_nodes = isinstance(document, PersistentNode) or (
        isinstance(document, Mapping) and any(isinstance(value, PersistentNode) for value in document.values())
    )
    if holds_nodes or not isinstance(document, Mapping):
        if isinstance(document, PersistentNode):
            from_nvlabs_network(document, "the network")
        if holds_nodes:
            from_nvlabs_document(document)
    from_rosinality_document(document)
    raise CheckpointError("the generator in it is not where it was looked for: save its state_dict alone")
