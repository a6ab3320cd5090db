"""Published encoder files of every layout: what is read from them, and which are refused by what they are."""

from __future__ import annotations

import argparse
import io
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from lsap_core.encoders import Encoder, EncoderConfig
from lsap_core.encoders.checkpoints import (
    EncoderCheckpoint,
    build_encoder,
    encoder_digest,
    encoder_shapes,
    from_canonical_encoder,
    from_encoder_document,
    is_encoder_document,
    to_encoder_metadata,
)
from lsap_core.encoders.checkpoints.published import HEADS_OF_METHOD
from lsap_core.errors import CheckpointError
from lsap_core.generators import Generator, GeneratorConfig
from lsap_core.generators.checkpoints import read_torch, to_rosinality
from lsap_core.presets import METHODS

Table = Callable[..., dict[str, Tensor]]

# Eight rows of the published width: the tensors of such a file are those of the first heads of a larger one.
EIGHT_ROWS = GeneratorConfig(32, (4, 4, 4, 4), w_dim=512, num_mapping_layers=1)
PSP = {"encoder_type": "GradualStyleEncoder", "output_size": 32}
E4E = {"encoder_type": "Encoder4Editing", "stylegan_size": 32}


@pytest.fixture(scope="module")
def table(published_keys: Callable[[str], dict[str, list[int]]]) -> Table:
    """Tensors of a published table of names: zeros, one memory for all of a shape."""
    zeros: dict[tuple[int, ...], Tensor] = {}

    def make(name: str, *, rows: int = 8, prefix: str = "encoder.") -> dict[str, Tensor]:
        tensors = {}
        for key, shape in published_keys(name).items():
            parts = key.split(".")
            if "styles" in parts and int(parts[parts.index("styles") + 1]) >= rows:
                continue
            tensor = zeros.setdefault(tuple(shape), torch.zeros(shape))
            tensors[prefix + key] = tensor.long() if key.endswith("num_batches_tracked") else tensor
        return tensors

    return make


def document(state: dict[str, Tensor], opts: Any, latent_avg: Any = None, **others: Any) -> dict[str, Any]:
    """A file in the layout of pSp and e4e."""
    return {"state_dict": state, "opts": opts, "latent_avg": torch.zeros(512) if latent_avg is None else latent_avg} | {
        **others
    }


# --- layouts -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "opts", "layout", "heads"),
    [
        ("psp_encoder", {"encoder_type": "GradualStyleEncoder", "output_size": 1024}, "psp", "direct"),
        ("e4e_encoder", {"encoder_type": "Encoder4Editing", "stylegan_size": 1024}, "e4e", "offsets"),
        (
            "w_encoder",
            {"encoder_type": "BackboneEncoderUsingLastLayerIntoW", "output_size": 1024},
            "w_encoder",
            "single",
        ),
    ],
)
def test_every_tensor_of_a_published_encoder_has_its_place(
    name: str, opts: dict[str, Any], layout: str, heads: str, table: Table
) -> None:
    checkpoint = from_encoder_document(document(table(name, rows=18), opts))
    assert checkpoint.config == EncoderConfig(heads, "ir_se_50", 18, 512, (256, 256), 3)  # type: ignore[arg-type]
    assert checkpoint.state.keys() == encoder_shapes(checkpoint.config).keys()
    assert (checkpoint.layout, checkpoint.options, checkpoint.notes) == (layout, opts, ())
    assert (checkpoint.decoder, checkpoint.discriminator, checkpoint.generator_digest) == (None, None, None)


@pytest.mark.parametrize("place", ["", "encoder.module."], ids=["plain", "distributed"])
def test_a_ganinverter_file_loads_also_when_it_was_trained_on_several_devices(place: str, table: Table) -> None:
    state = table("ganinverter_encoder_wrapper", prefix="")
    state["encoder.styles.5.linear.bias"] = torch.arange(512.0)
    state["latent_avg"] = torch.arange(512.0)
    if place:
        state = {name.replace("encoder.", place): tensor for name, tensor in state.items()}
    file = {"encoder": state, "opts": {"resolution": 32, "encoder_type": "Encoder4Editing"}, "global_step": 3}
    checkpoint = from_encoder_document(file)
    assert checkpoint.layout == "ganinverter"
    assert (checkpoint.config.heads, checkpoint.config.num_ws) == ("offsets", 8)
    assert torch.equal(checkpoint.state["heads.5.linear.bias"], torch.arange(512.0))
    assert torch.equal(checkpoint.state["w_avg"], torch.arange(512.0).expand(8, -1))


def test_a_ganinverter_file_without_options_is_read_with_that_programs_default(table: Table) -> None:
    checkpoint = from_encoder_document({"encoder": table("ganinverter_encoder_wrapper", prefix="")})
    assert checkpoint.config.heads == "offsets"
    assert checkpoint.notes == (
        "the file names no encoder_type; Encoder4Editing, the default of GANInverter, was assumed",
    )


@pytest.mark.parametrize("prefix", ["module.encoder.", "encoder.module.", "module.encoder.module."])
def test_module_is_stripped_at_every_level(prefix: str, table: Table) -> None:
    checkpoint = from_encoder_document(document(table("psp_encoder", prefix=prefix), PSP))
    assert checkpoint.config.num_ws == 8


def test_a_tensor_that_is_there_under_two_names_is_refused(table: Table) -> None:
    state = table("psp_encoder") | {"encoder.module.latlayer1.bias": torch.zeros(512)}
    with pytest.raises(CheckpointError, match=r"encoder\.latlayer1\.bias is there twice"):
        from_encoder_document(document(state, PSP))


@pytest.mark.parametrize(("kind", "heads"), [("BackboneEncoder", "direct"), ("ProgressiveBackboneEncoder", "offsets")])
def test_restyle_of_faces_reads_two_images_and_one_map(kind: str, heads: str, table: Table) -> None:
    state = {name: tensor for name, tensor in table("psp_encoder").items() if "latlayer" not in name}
    for name in state:  # every head reads the 16 x 16 map
        if ".styles." in name and int(name.split(".")[2]) > 2:
            state[name] = state.get(name.replace(name.split(".")[2], "0", 1), torch.zeros(0))
    state = {name: tensor for name, tensor in state.items() if tensor.numel() > 0}
    state["encoder.input_layer.0.weight"] = torch.zeros(64, 6, 3, 3)
    checkpoint = from_encoder_document(document(state, {"encoder_type": kind, "start_from_latent_avg": False}))
    assert checkpoint.layout == "restyle"
    assert checkpoint.config == EncoderConfig(
        heads,
        "ir_se_50",
        8,
        512,
        (256, 256),
        3,
        is_iterative=True,
        has_pyramid=False,  # type: ignore[arg-type]
    )


def test_restyle_starts_from_the_mean_whatever_its_options_say(resnet_state: dict[str, Tensor]) -> None:
    options = {"encoder_type": "ResNetBackboneEncoder", "start_from_latent_avg": False}
    checkpoint = from_encoder_document(document(resnet_state, options, torch.ones(8, 512)))
    assert torch.equal(checkpoint.state["w_avg"], torch.ones(8, 512))


@pytest.fixture(scope="module")
def resnet_state(table: Table) -> dict[str, Tensor]:
    """ReStyle for other domains: torchvision's names in one list, PReLU after the first convolution."""
    import torchvision

    with torch.device("meta"):
        published = torchvision.models.resnet34(weights=None)
        published.conv1 = torch.nn.Conv2d(6, 64, 7, bias=False)
    groups = [published.layer1, published.layer2, published.layer3, published.layer4]
    body = torch.nn.Sequential(*(block for group in groups for block in group))
    shapes = {"conv1.weight": published.conv1.weight.shape, "relu.weight": torch.Size([64])}
    shapes |= {f"bn1.{name}": value.shape for name, value in published.bn1.state_dict().items()}
    shapes |= {f"body.{name}": value.shape for name, value in body.state_dict().items()}
    state = {f"encoder.{name}": torch.zeros(shape) for name, shape in shapes.items()}
    heads = {name: t for name, t in table("psp_encoder", rows=1).items() if ".styles." in name}
    for row in range(8):
        state |= {name.replace("styles.0", f"styles.{row}"): tensor for name, tensor in heads.items()}
    return state


@pytest.mark.parametrize(
    ("kind", "heads"), [("ResNetBackboneEncoder", "direct"), ("ResNetProgressiveBackboneEncoder", "offsets")]
)
def test_restyle_of_other_domains_has_a_resnet(kind: str, heads: str, resnet_state: dict[str, Tensor]) -> None:
    options = {"encoder_type": kind, "dataset_type": "cars_encode"}
    checkpoint = from_encoder_document(document(resnet_state, options))
    assert checkpoint.config == EncoderConfig(
        heads,
        "resnet_34",
        8,
        512,
        (192, 256),
        3,
        is_iterative=True,
        has_pyramid=False,  # type: ignore[arg-type]
    )


def test_what_hfgi_adds_is_left_alone_and_said(table: Table) -> None:
    state = table("e4e_encoder") | {"residue.conv.weight": torch.zeros(1), "grid_align.conv.weight": torch.zeros(1)}
    checkpoint = from_encoder_document(document(state, E4E))
    assert checkpoint.layout == "hfgi"
    assert "HFGI's consultation encoder (residue) is in the file too and was left alone" in checkpoint.notes


def test_the_generator_in_the_file_comes_along(table: Table, random_generator: Callable[..., Generator]) -> None:
    generator = random_generator(EIGHT_ROWS)
    decoder = to_rosinality(generator.config, generator.state_dict())
    files = [
        document(table("e4e_encoder") | {f"decoder.{name}": t for name, t in decoder.items()}, E4E, torch.ones(8, 512)),
        {
            "encoder": table("ganinverter_encoder_wrapper", prefix="") | {"latent_avg": torch.ones(512)},
            "decoder": decoder,
            "opts": E4E,
        },
    ]
    for file in files:
        found = from_encoder_document(file).decoder
        assert found is not None and found.config == EIGHT_ROWS
        assert torch.equal(found.state["synthesis.const"], generator.synthesis.const)
        assert torch.equal(found.state["mapping.w_avg"], torch.ones(512))  # all rows are equal: it is the mean of W
    decoder.pop("input.input")
    with pytest.raises(CheckpointError, match=r"the decoder in the file: [^$]*input\.input +missing"):
        from_encoder_document(files[1])


def test_e4es_discriminator_comes_along(table: Table, published_keys: Callable[[str], dict[str, list[int]]]) -> None:
    shapes = published_keys("latent_discriminator")
    discriminator = {name: torch.full(shape, 2.0) for name, shape in shapes.items()}
    file = document(
        table("e4e_encoder"),
        E4E,
        discriminator_state_dict=discriminator,
        optimizer={},
        best_val_loss=0.5,
        global_step=7,
    )
    found = from_encoder_document(file).discriminator
    assert (
        found is not None and found.keys() == shapes.keys() and torch.equal(found["mlp.6.bias"], torch.full((1,), 2.0))
    )
    discriminator.pop("mlp.4.bias")
    with pytest.raises(CheckpointError, match=r"the latent discriminator in the file: [^$]*mlp\.4\.bias +missing"):
        from_encoder_document(file)


# --- rows --------------------------------------------------------------------------------------------


def test_of_more_heads_than_rows_the_first_are_used(table: Table) -> None:
    state = table("e4e_encoder", rows=10)
    for row in range(10):
        state[f"encoder.styles.{row}.linear.bias"] = torch.full((512,), float(row))
    mean = torch.arange(10.0)[:, None].expand(-1, 512).contiguous()
    checkpoint = from_encoder_document(document(state, E4E, mean), generator_config=EIGHT_ROWS)
    assert checkpoint.config.num_ws == 8
    assert [float(checkpoint.state[f"heads.{row}.linear.bias"][0]) for row in range(8)] == list(range(8))
    assert torch.equal(checkpoint.state["w_avg"], mean[:8])
    assert checkpoint.notes == ("the file has 10 heads; the generator has 8 rows, so the first were used",)


def test_too_few_heads_are_refused(table: Table) -> None:
    with pytest.raises(CheckpointError, match=r"has 6 heads, the generator has 8 rows of W\+: use the generator"):
        from_encoder_document(document(table("psp_encoder", rows=6), PSP), generator_config=EIGHT_ROWS)


@pytest.mark.parametrize(
    ("mean", "options", "generator", "rows"),
    [
        (torch.zeros(14, 512), {}, None, 14),
        (torch.zeros(512), {"output_size": 256}, None, 14),
        (torch.zeros(1, 512), {"stylegan_size": 512}, None, 16),
        (torch.zeros(14, 512), {"resolution": 256}, EIGHT_ROWS, 8),
    ],
)
def test_rows_of_a_single_head_are_those_of_generator_mean_or_resolution(
    mean: Tensor, options: dict[str, Any], generator: GeneratorConfig | None, rows: int, table: Table
) -> None:
    checkpoint = from_encoder_document(document(table("w_encoder"), options, mean), generator_config=generator)
    assert (checkpoint.config.heads, checkpoint.config.num_ws) == ("single", rows)
    assert checkpoint.state["w_avg"].shape == (rows, 512)


def test_a_single_head_without_rows_is_refused(table: Table) -> None:
    with pytest.raises(CheckpointError, match="does not say for how many rows: it is read beside a generator"):
        from_encoder_document(document(table("w_encoder"), {}))


def test_heads_with_gaps_are_refused_before_anything_is_built(table: Table) -> None:
    state = table("psp_encoder") | {"encoder.styles.1000000000.linear.bias": torch.zeros(512)}
    with pytest.raises(
        CheckpointError, match=r"has the heads \[0, 1, 2, 3, 4, 5, 6, 7, 1000000000\]; wanted them from 0"
    ):
        from_encoder_document(document(state, PSP))


def test_heads_that_nobody_names_have_to_be_passed(table: Table) -> None:
    file = document(table("psp_encoder"), {"output_size": 32})
    with pytest.raises(CheckpointError, match=r"set heads\.mine in the run or domain file, to direct for one like pSp"):
        from_encoder_document(file, name="mine")
    given = from_encoder_document(file, heads="offsets", name="psp")
    assert given.config.heads == "offsets" and "offsets was given" in given.notes[0]
    looked_at = from_encoder_document(file, needs_heads=False)
    assert (looked_at.knows_heads, looked_at.config.num_ws) == (False, 8) and given.knows_heads
    with pytest.raises(CheckpointError, match='its file says "direct" heads, "offsets" were asked for'):
        from_encoder_document(file | {"opts": PSP}, heads="offsets")


@pytest.mark.parametrize(
    ("name", "heads"),
    [
        ("psp", "direct"),
        ("restyle_psp", "direct"),
        ("e4e", "offsets"),
        ("lsap_e", "offsets"),
        ("restyle_e4e", "offsets"),
    ],
)
def test_a_published_name_tells_how_heads_make_rows(name: str, heads: str, table: Table) -> None:
    file = {"state_dict": table("psp_encoder"), "latent_avg": torch.zeros(512)}
    found = from_encoder_document(file, name=name)
    assert found.config.heads == heads
    assert found.notes == (f"the file does not say how its heads make rows of W+; {heads}, as {name} has, was assumed",)
    assert from_encoder_document(file | {"opts": PSP}, name="e4e").config.heads == "direct"  # what the file says holds


def test_the_names_that_tell_are_those_of_the_methods() -> None:
    assert {
        name: "offsets" if (method.base or name).endswith("e4e") else "direct"
        for name, method in METHODS.items()
        if method.encoder == name
    } == HEADS_OF_METHOD


def test_weights_that_stand_at_the_top_are_those_of_an_encoder_too(table: Table) -> None:
    bare = {f"module.{name}": tensor for name, tensor in table("psp_encoder").items()}
    found = from_encoder_document(bare | {"latent_avg": torch.ones(512), "epoch": 3}, name="psp")
    assert torch.equal(found.state["w_avg"], torch.ones(8, 512))


def test_the_mean_is_that_of_the_generator_in_the_file(table: Table) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        generator = Generator(EIGHT_ROWS)
    decoder = {f"decoder.{name}": t for name, t in to_rosinality(EIGHT_ROWS, generator.state_dict()).items()}
    file = {"state_dict": table("e4e_encoder") | decoder, "opts": E4E}
    found = from_encoder_document(file)
    z = torch.from_numpy(np.random.RandomState(0).standard_normal((10_000, 512)).astype(np.float32))
    expected = generator.map(z).mean(dim=0).expand(8, -1)
    torch.testing.assert_close(found.state["w_avg"], expected, atol=1e-5, rtol=1e-4)
    assert "the mean of 10000 codes of the generator in it was taken" in found.notes[0]


def test_options_of_e4e_name_it_also_without_its_class(table: Table) -> None:
    checkpoint = from_encoder_document(document(table("e4e_encoder"), {"stylegan_size": 32}))
    assert checkpoint.config.heads == "offsets" and "Encoder4Editing was assumed" in checkpoint.notes[0]


# --- the mean ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(512,), (1, 512), (8, 512), (18, 512)])
def test_the_mean_may_have_any_number_of_rows(shape: tuple[int, ...], table: Table, numbers: Table) -> None:
    mean = numbers(*shape)
    found = from_encoder_document(document(table("psp_encoder"), PSP, mean)).state["w_avg"]
    rows = mean.reshape(-1, 512)
    assert torch.equal(found, rows[:8] if len(rows) >= 8 else rows.expand(8, -1))


def test_codes_that_do_not_start_from_the_mean_start_from_zero(table: Table, numbers: Table) -> None:
    file = document(table("psp_encoder"), PSP | {"start_from_latent_avg": False}, numbers(512))
    assert torch.equal(from_encoder_document(file).state["w_avg"], torch.zeros(8, 512))
    file["latent_avg"] = None
    from_encoder_document(file)


@pytest.mark.parametrize(
    ("mean", "found"), [(torch.zeros(256), r"\[256\]"), (torch.zeros(5, 512), r"\[5, 512\]"), ([0], "list")]
)
def test_another_mean_is_refused(mean: Any, found: str, table: Table) -> None:
    with pytest.raises(CheckpointError, match=rf"latent_avg is {found}.*wanted the mean of W, \[512\].*\[8, 512\]"):
        from_encoder_document(document(table("psp_encoder"), PSP, mean))


@pytest.mark.parametrize("mean", [torch.zeros(512).long(), torch.zeros(1, 1).expand(10**9, 512)])
def test_a_mean_that_is_no_table_of_numbers_is_refused(mean: Tensor, table: Table) -> None:
    with pytest.raises(CheckpointError, match=r"latent_avg +(torch\.int64|a tensor without memory for each value)"):
        from_encoder_document(document(table("psp_encoder"), PSP, mean))


def test_a_missing_mean_is_told_with_what_to_do(table: Table) -> None:
    file = document(table("psp_encoder"), PSP)
    del file["latent_avg"]
    with pytest.raises(CheckpointError, match="the file has no latent_avg: add that of its generator"):
        from_encoder_document(file)


# --- input -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "keywords", "input_size"),
    [
        ({}, {}, (256, 256)),
        ({"dataset_type": "ffhq_encode"}, {}, (256, 256)),
        ({"dataset_type": "cars_encode"}, {}, (192, 256)),
        ({"dataset_type": "cars_encode"}, {"input_size": (256, 256)}, (256, 256)),
        ({}, {"generator_config": GeneratorConfig.config_f(512, content_box=(64, 448, 0, 512))}, (192, 256)),
        ({}, {"generator_config": replace(GeneratorConfig.config_f(512), constant=(4, 2))}, (256, 128)),
        ({}, {"generator_config": EIGHT_ROWS}, (256, 256)),  # published encoders read no smaller images
    ],
)
def test_the_input_size_is_that_of_options_or_generator(
    options: dict[str, Any], keywords: dict[str, Any], input_size: tuple[int, int], table: Table
) -> None:
    rows = keywords["generator_config"].num_ws if "generator_config" in keywords else 8
    checkpoint = from_encoder_document(document(table("e4e_encoder", rows=rows), E4E | options), **keywords)
    assert checkpoint.config.input_size == input_size


def test_heads_for_images_of_another_size_are_refused(table: Table) -> None:
    with pytest.raises(CheckpointError, match=r"heads\.0\.convs\.6\.weight +\[512, 512, 3, 3\] +nothing"):
        from_encoder_document(document(table("psp_encoder"), PSP), input_size=(128, 128))


def test_an_encoder_of_sketches_is_refused(table: Table) -> None:
    state = table("psp_encoder") | {"encoder.input_layer.0.weight": torch.zeros(64, 19, 3, 3)}
    with pytest.raises(CheckpointError, match=r"reads 19 channels; wanted 1 or 3 .*or twice as many"):
        from_encoder_document(document(state, PSP))
    state["encoder.input_layer.0.weight"] = torch.zeros(64, 1, 3, 3)
    with pytest.raises(CheckpointError, match="reads 1 channels; wanted 3 for images of the generator"):
        from_encoder_document(document(state, PSP), generator_config=EIGHT_ROWS)


# --- refused -----------------------------------------------------------------------------------------


def test_missing_and_unexpected_tensors_are_named(table: Table) -> None:
    state = table("psp_encoder")
    del state["encoder.styles.3.convs.2.weight"], state["encoder.body.11.res_layer.3.weight"]
    state["encoder.toplayer.weight"] = torch.zeros(2)
    state["encoder.latlayer1.weight"] = torch.zeros(512, 9, 1, 1)
    with pytest.raises(CheckpointError) as caught:
        from_encoder_document(document(state, PSP))
    lines = [line.split() for line in str(caught.value).splitlines()]
    assert "4 tensors differ" in str(caught.value)
    assert ["heads.3.convs.2.weight", "missing", "[512,", "512,", "3,", "3]"] in lines
    assert ["backbone.body.11.res_layer.3.weight", "missing", "[256,", "256,", "3,", "3]"] in lines
    assert ["toplayer.weight", "[2]", "nothing"] in lines
    assert ["pyramid.lateral1.weight", "[512,", "9,", "1,", "1]", "[512,", "256,", "1,", "1]"] in lines


def test_weights_that_are_no_numbers_are_refused(table: Table) -> None:
    state = table("w_encoder") | {"encoder.linear.bias": torch.full((512,), torch.nan)}
    with pytest.raises(CheckpointError, match=r"heads\.0\.linear\.bias holds values that are not finite"):
        from_encoder_document(document(state, {"output_size": 32}))


@pytest.mark.parametrize(
    ("file", "found"),
    [
        ({"g_ema": {"input.input": 0}, "latent_avg": 0}, "a generator checkpoint .*pass it as the generator"),
        (
            {"input_layer.0.weight": 0, "body.0": 0, "output_layer.3.weight": 0},
            "the face recognition .*as the backbone",
        ),
        ({"input_layer.0.weight": 0, "body.0": 0}, "the bare weights of an encoder: save them as"),
        ({"state_dict": {"hypernet.a": 0, "decoder.b": 0}}, "a HyperStyle checkpoint.*no encoder"),
        ({"state_dict": {"module.hypernet.a": 0, "encoder.b": 0}}, r"a HyperStyle .*refiner_networks\.hyperstyle"),
        ({"state_dict": {"encoder.convs.0.weight": 0, "inverter.a.b": 0}}, r"a StyleFeatureEditor .*networks\.sfe"),
        ({"state_dict": {"encoder.a": 0, "e4e_encoder.a.b": 0}, "encoder_opt": {}}, "a StyleFeatureEditor"),
        ({"state_dict": {"module.encoder_q.conv1.weight": 0}}, "a state_dict of another network"),
        (
            {"G_ema": {"synthesis.b4.const": torch.zeros(1)}},
            "the weights of a generator of NVlabs.*pass the file as the",
        ),
        (
            {
                "state_dict": {
                    "generator.constant_input.input": torch.zeros(1),
                    "generator.conv1.conv.weight_orig": torch.zeros(1),
                    "generator.style_mapping.1.linear.weight_orig": torch.zeros(1),
                }
            },
            "the weights of a generator of MMGen",
        ),
        ({"anything": 1}, "a dictionary with the entries anything"),
        ([1, 2], "a single list"),
    ],
)
def test_other_files_are_refused_by_what_they_are(file: object, found: str) -> None:
    assert not is_encoder_document(file)
    with pytest.raises(CheckpointError, match=f"wanted an encoder checkpoint .*found {found}"):
        from_encoder_document(file)


def test_an_entry_encoder_without_encoder_is_refused() -> None:
    with pytest.raises(CheckpointError, match=r"the entry encoder holds no encoder\.\*; found styles"):
        from_encoder_document({"encoder": {"styles.0.linear.weight": torch.zeros(1)}})


def test_the_ablation_that_pools_is_refused_by_name(table: Table) -> None:
    options = {"encoder_type": "BackboneEncoderUsingLastLayerIntoWPlus"}
    with pytest.raises(CheckpointError, match=r"is a BackboneEncoderUsingLastLayerIntoWPlus; supported are Gradual"):
        from_encoder_document(document(table("w_encoder"), options))


# --- files with code ---------------------------------------------------------------------------------


def saved(file: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(file, buffer)
    return buffer.getvalue()


@pytest.mark.parametrize("kind", [dict, argparse.Namespace])
def test_options_may_be_a_dictionary_or_a_namespace(kind: Callable[..., Any], table: Table) -> None:
    options = {
        **E4E,
        "learning_rate": 1e-4,
        "progressive_steps": [0, 20],
        "device": torch.device("cpu"),
        "nan": float("nan"),
    }
    state = table("w_encoder")  # small enough to write
    file = document(state, kind(**options | {"encoder_type": "SingleStyleCodeEncoder"}))
    checkpoint = from_encoder_document(read_torch(saved(file)))
    assert checkpoint.options["progressive_steps"] == [0, 20] and checkpoint.options["learning_rate"] == 1e-4
    assert json.loads(json.dumps(checkpoint.options)) == checkpoint.options
    assert checkpoint.config.num_ws == 8


def test_options_inside_themselves_end(table: Table) -> None:
    options: dict[str, Any] = {"encoder_type": "WEncoder", "output_size": 32}
    options["again"] = options
    found = from_encoder_document(document(table("w_encoder"), options)).options
    assert json.dumps(found).count("WEncoder") == 5 and json.dumps(found).count("(dict)") == 1


def test_options_that_carry_code_are_refused_and_not_run(tmp_path: Path) -> None:
    marker = tmp_path / "was run"

    class Hostile:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (marker,)

    for opts in (Hostile(), argparse.Namespace(encoder_type=Hostile())):
        with pytest.raises(CheckpointError, match="nothing was run"):
            read_torch(saved({"state_dict": {"encoder.linear.weight": torch.zeros(1)}, "opts": opts}))
    assert not marker.exists()


def test_a_whole_pickled_encoder_is_refused(small_encoder: Callable[..., Encoder]) -> None:
    with pytest.raises(
        CheckpointError, match=r"lsap_core\.encoders\.config\.EncoderConfig, at its entry encoder\.config"
    ):
        read_torch(saved({"encoder": small_encoder()}))


# --- our own files -----------------------------------------------------------------------------------


@pytest.fixture
def small_checkpoint(small_encoder: Callable[..., Encoder]) -> EncoderCheckpoint:
    encoder = small_encoder()
    encoder.w_avg.normal_(generator=torch.Generator().manual_seed(1))
    state = {name: tensor for name, tensor in encoder.state_dict().items() if not name.endswith("num_batches_tracked")}
    return EncoderCheckpoint(
        encoder.config,
        state,
        "safetensors",
        {"steps": 3},
        ("a note",),
        generator_digest="ab" * 32,
        title="LSAP_E, digits",
    )


def test_our_own_file_keeps_everything(small_checkpoint: EncoderCheckpoint) -> None:
    metadata = to_encoder_metadata(small_checkpoint)
    assert metadata["kind"] == "encoder" and all(isinstance(value, str) for value in metadata.values())
    found = from_canonical_encoder(small_checkpoint.state, metadata)
    assert found.config == small_checkpoint.config and found.digest == small_checkpoint.digest
    assert all(torch.equal(tensor, found.state[name]) for name, tensor in small_checkpoint.state.items())
    for name in ("options", "notes", "title", "generator_digest", "layout"):
        assert getattr(found, name) == getattr(small_checkpoint, name)


def test_a_built_encoder_gives_the_codes_of_the_one_that_was_saved(
    small_checkpoint: EncoderCheckpoint, small_encoder: Callable[..., Encoder], numbers: Table
) -> None:
    before = torch.get_rng_state()
    encoder = build_encoder(small_checkpoint)
    assert torch.equal(torch.get_rng_state(), before) and not encoder.training
    assert all(parameter.requires_grad for parameter in encoder.parameters())
    original, images = small_encoder(), numbers(2, 1, 32, 32)
    original.w_avg.copy_(small_checkpoint.state["w_avg"])
    assert torch.equal(encoder(images), original(images))
    with torch.no_grad():
        encoder.w_avg.zero_()  # its memory is its own
    assert small_checkpoint.state["w_avg"].abs().max() > 0


def test_training_goes_on_with_a_built_encoder(small_checkpoint: EncoderCheckpoint, numbers: Table) -> None:
    encoder = build_encoder(small_checkpoint).train()
    encoder(numbers(2, 1, 32, 32)).square().sum().backward()
    assert all(parameter.grad is not None for parameter in encoder.parameters())
    counter = encoder.backbone.get_buffer("input_layer.1.num_batches_tracked")
    assert counter.item() == 1


def test_the_digest_sees_every_weight_and_size_and_no_counter(small_checkpoint: EncoderCheckpoint) -> None:
    config, state = small_checkpoint.config, small_checkpoint.state
    digest = encoder_digest(config, state)
    assert digest == encoder_digest(config, state | {"backbone.input_layer.1.num_batches_tracked": torch.tensor(9)})
    for name in ("w_avg", "heads.7.linear.bias", "backbone.input_layer.1.running_var"):
        changed = state[name].clone()
        changed.view(-1)[-1] += 1e-3
        assert encoder_digest(config, state | {name: changed}) != digest
    other = EncoderConfig.from_dict({**config.to_dict(), "heads": "direct"})
    assert encoder_digest(other, state) != digest


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "Generator"}, "the metadata name Generator; wanted an encoder saved by this library"),
        ({"format_version": "2"}, "the format version is 2; this library reads 1: update it"),
        ({"config": "{"}, "is no configuration of an encoder"),
        ({"config": '{"heads": "deltas"}'}, "is no configuration of an encoder"),
        ({"options": "[]"}, r"the options '\[\]' are a list; wanted a dict"),
        ({"notes": "no"}, "the notes 'no' are no JSON"),
        ({"digest": "0" * 64}, "its file was written with 0000.*changed or damaged"),
    ],
)
def test_other_metadata_are_refused(change: dict[str, str], message: str, small_checkpoint: EncoderCheckpoint) -> None:
    with pytest.raises(CheckpointError, match=message):
        from_canonical_encoder(small_checkpoint.state, to_encoder_metadata(small_checkpoint) | change)
