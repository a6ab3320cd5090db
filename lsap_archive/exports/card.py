"""README.md of an exported data set: what is in it, where it comes from, what is known and what is not.

Names in an archive are anybody's: they stand in the card as JSON in code, so that none becomes markup.
"""

from __future__ import annotations

import json
from typing import Any

from lsap_archive.exports.chosen import IMAGE, ORIGINAL, Chosen
from lsap_archive.format.layout import TRACE, W_PLUS
from lsap_archive.reading.run_info import RunInfo

TAGS = ("gan-inversion", "stylegan2", "latent-codes", "lsap")
_SIZES = ((10**3, "n<1K"), (10**4, "1K<n<10K"), (10**5, "10K<n<100K"), (10**6, "100K<n<1M"), (10**7, "1M<n<10M"))
_MEANS = ("sncd", "lpips", "mse", "identity_similarity")
_COLUMNS = {
    "image_id, uri, digest": "the image's name, where it lay, and SHA-256 of its file",
    "run_id, row": "the run and the row in it; together they tell rows of several runs apart",
    "status, reason, message, duplicate_of": "of a `duplicate` the code is that of the image it names",
    "method": "which method found the code; `method/refiner` refined it, `method/edit` edited it",
    "edit, strength, subject_run_id, subject_row": "of edits and refinements: which, how far, of which code; else null",
    "width, height, altered": "of the original file, and what was done to its pixels (such as `cropped`)",
    "noise": "what an image is rendered with: its own maps (`float32`, `float16`), or the generator's `constant` ones",
    "mse, lpips, lpips_judge": "of reconstruction and image, lower is closer; the judge is a network in no loss",
    "identity_similarity": "cosine similarity, higher is closer",
    "sncd": "S^N cosine distance of the code, lower is better aligned with the codes that the generator makes",
    "w_distance": "distance to the mean code",
    "num_steps, seconds, final_loss, shard, attempt": "of the work itself",
}


def card(chosen: Chosen, features: dict[str, Any], *, num_rows: int, num_bytes: int, stored_bytes: int) -> str:
    """The card, with the header that Hugging Face reads.

    Args:
        chosen: what was exported.
        features: of the columns, as `datasets.Features.from_dict` takes them.
        num_rows: that were written.
        num_bytes: of their values in memory.
        stored_bytes: of the Parquet files.
    """
    split = {"name": "train", "num_bytes": num_bytes, "num_examples": num_rows}
    about = {
        "features": [{"name": name, **_in_header(feature)} for name, feature in features.items()],
        "splits": [split],
        "download_size": stored_bytes,
        "dataset_size": num_bytes,
    }
    files = [{"split": "train", "path": "data/train-*.parquet"}]
    header = {
        "license": "unknown",
        "tags": list(TAGS),
        "size_categories": [next((told for most, told in _SIZES if num_rows < most), "n>10M")],
        "configs": [{"config_name": "default", "data_files": files}],
        "dataset_info": about,
    }
    lines = [f"{name}: {json.dumps(value)}" for name, value in header.items()]  # JSON is YAML
    return "\n".join(["---", *lines, "---", "", *_body(chosen, num_rows), ""])


def _in_header(feature: dict[str, Any]) -> dict[str, Any]:
    """A feature as the header of a card names it."""
    kind = feature["_type"]
    if kind == "Image":
        return {"dtype": "image"}
    if kind == "Value":
        return {"dtype": feature["dtype"]}
    if kind == "List":
        inner = _in_header(feature["feature"])
        return {"list": inner.get("dtype", inner), "length": feature["length"]}
    named = f"array{kind.removeprefix('Array').removesuffix('D')}_d"
    return {"dtype": {named: {"shape": feature["shape"], "dtype": feature["dtype"]}}}


def _body(chosen: Chosen, num_rows: int) -> list[str]:
    generator, geometry = chosen.archive.generator, chosen.archive.geometry
    runs = _runs(chosen)
    arrays = [f"- `{name}` {list(shape)}, float32: {_meaning(name)}" for name, shape in chosen.shapes.items()]
    if chosen.trace_terms:
        arrays.append(f"- along the trace: steps {_code(chosen.trace_steps)}, terms {_code(chosen.trace_terms)}")
    pictures = [
        f"- `{name}`: {what}, of {chosen.num_pictures[name]} of the rows; null where none was kept"
        for name, what in ((IMAGE, "what the method made of the image"), (ORIGINAL, "the image itself, small"))
        if name in chosen.picture_columns
    ]
    return [
        "# Codes of images in the latent space of a StyleGAN2",
        "",
        f"{num_rows} codes in W+ [{geometry.num_ws}, {geometry.w_dim}], found by GAN inversion with `lsap` and "
        "exported from its archive.",
        "",
        "**The licence is unknown**: the archive does not tell under which terms images, generator and networks may be "
        "used. Look it up and set `license` above before you hand this on; images of people, and codes that give them "
        "back, may be personal data, and `uri` and the settings may name folders of whoever made the archive.",
        "",
        "## Where it comes from",
        "",
        f"Generator {_code(generator['name'])}, digest {_code(generator['digest'])}. A code means something for this "
        "generator alone.",
        "",
        *_means(chosen),
        "",
        "## Columns",
        "",
        *arrays,
        *pictures,
        *(f"- `{name}`: {what}" for name, what in _COLUMNS.items()),
        "",
        "## How to get back to codes",
        "",
        "```python",
        "import datasets, numpy",
        "",
        'rows = datasets.load_dataset("path/of/this/folder", split="train")',
        f'codes = rows.with_format("numpy")[:16]["w_plus"]  # float32 [16, {geometry.num_ws}, {geometry.w_dim}]',
        "```",
        "",
        "They are the archive's, bit for bit (`lsap_archive.open_archive(url).codes(image_ids, method)`). The "
        "generator's synthesis takes them as they are, one row for each of its inputs of style. Noise: where `noise` "
        "is `constant` the generator's own maps belong to a code; else those of the image (`noise_00`, ...) do, if "
        "they were exported, and edits of an image use the same. With other noise an image differs in its fine detail.",
        "",
        "## Settings",
        "",
        *(line for run in runs for line in _settings(run)),
    ]


def _meaning(name: str) -> str:
    if name == W_PLUS:
        return "the code in W+, a row for each input of style"
    if name == TRACE:
        return "terms of the objective along the optimization; NaN where a step was not reached"
    if name.startswith("noise_"):
        return "a noise map of the image's own"
    return "what the refinement keeps beside the code"


def _means(chosen: Chosen) -> list[str]:
    """A table of the methods: numbers of rows, and means over them."""
    means = ", ".join(f"avg({name}) as {name}" for name in _MEANS)
    found = chosen.archive.sql(
        f"select method, count(*) as rows, {means} from ({chosen.query}) group by method order by method"
    ).to_pylist()
    lines = [
        f"| method | rows | {' | '.join(f'mean {name}' for name in _MEANS)} |",
        f"|---|{'---:|' * (1 + len(_MEANS))}",
    ]
    for row in found:
        numbers = ["" if row[name] is None else f"{row[name]:.6g}" for name in _MEANS]
        lines.append(f"| {_code(row['method']).replace('|', '&#124;')} | {row['rows']} | {' | '.join(numbers)} |")
    return lines


def _runs(chosen: Chosen) -> list[RunInfo]:
    """The newest run of each configuration among the rows."""
    ids = set(chosen.archive.sql(f"select distinct run_id from ({chosen.query})").column("run_id").to_pylist())
    newest = {run.method_digest: run for run in chosen.archive.runs if run.run_id in ids}
    return list(newest.values())


def _settings(run: RunInfo) -> list[str]:
    about = {"config": run.config, "provenance": run.provenance}
    return [
        f"{_code(run.method)}, digest {_code(run.method_digest)}:",
        "",
        "```json",
        json.dumps(about, indent=1),
        "```",
        "",
    ]


def _code(value: Any) -> str:
    """A value as JSON in code, whatever backticks it has."""
    told = json.dumps(value).replace("`", "\\u0060")
    return f"`{told}`"
