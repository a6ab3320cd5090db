"""The comparison of encoders: what is averaged over what, and when a claim counts as confirmed."""

import io
import math

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from lsap_archive import ROW_SCHEMA
from tasks.reports.paper.seeds import (
    Variant,
    compare_encoders,
    comparison_markdown,
    draw,
    encoders_parquet,
    order_of,
)

PSP = Variant("psp", "pSp", "psp", 0.0)
E4E = Variant("e4e", "e4e", "e4e", 0.0)
SWEEP = [
    Variant(f"lsap_e-{weight:g}", f"LSAP_E, λ = {weight:g}", "lsap_e", weight) for weight in (0.0, 0.25, 0.5, 0.75, 1.0)
]
SEEDS = (0, 1)
REFERENCES = {"floor": 0.05, "synthetic, psi = 1": 0.10}
# LPIPS and SNCD of each variant at seed 0; seed 1 lies .001 above.
LEVELS = {
    "psp": (0.060, 0.100),
    "e4e": (0.090, 0.080),
    "lsap_e-0": (0.070, 0.085),
    "lsap_e-0.25": (0.072, 0.070),
    "lsap_e-0.5": (0.075, 0.062),
    "lsap_e-0.75": (0.078, 0.061),
    "lsap_e-1": (0.080, 0.060),
}


def rows_of(levels=LEVELS, *, images=("a", "b"), missing=()) -> pa.Table:
    records = []
    for variant in (PSP, E4E, *SWEEP):
        for seed in SEEDS:
            for index, image_id in enumerate(images):
                if (variant.name, seed, image_id) in missing:
                    continue
                lpips, sncd = levels[variant.name]
                apart = (index - 0.5) * 0.01  # the images differ, their mean is the level
                records.append(
                    {
                        "run_id": f"{variant.name}-{seed}",
                        "row": index,
                        "image_id": image_id,
                        "uri": image_id,
                        "digest": image_id,
                        "method": variant.encoder(seed),
                        "status": "ok",
                        "shard": 0,
                        "attempt": "x",
                        "mse": lpips / 2,
                        "lpips": lpips + 0.001 * seed + apart,
                        "sncd": sncd + 0.001 * seed + apart,
                    }
                )
    return pa.Table.from_pylist(records, schema=ROW_SCHEMA)


def compared(**changes):
    return compare_encoders(rows_of(**changes), [PSP, E4E, SWEEP[2]], SEEDS, SWEEP, SEEDS, REFERENCES)


def outcomes(comparison):
    return {claim.text: claim.outcome for claim in comparison.claims}


def test_means_are_taken_over_images_first_and_the_spread_over_seeds():
    psp = compared().encoders[0]

    assert psp.metrics["lpips"] == pytest.approx((0.060, 0.061))
    lpips = psp.over_seeds("lpips")
    assert lpips.mean == pytest.approx(0.0605)
    assert lpips.deviation == pytest.approx(math.sqrt(2) * 0.0005, rel=1e-4)


def test_an_image_that_one_seed_lacks_enters_no_seed():
    comparison = compared(missing={("psp", 1, "b")})

    assert comparison.encoders[0].num_images == 1
    assert comparison.encoders[0].metrics["lpips"] == pytest.approx((0.055, 0.056))
    assert comparison.encoders[1].num_images == 2


def test_claims_follow_the_numbers():
    found = outcomes(compared())

    assert found["LSAP_E has a lower SNCD than e4e"] == "confirmed"
    assert found["pSp is closer to the images than LSAP_E (LPIPS)"] == "confirmed"
    assert found["LPIPS rises as lambda grows"] == "confirmed"

    worse = {**LEVELS, "lsap_e-0.5": (0.095, 0.110)}
    found = outcomes(compared(levels=worse))
    assert found["LSAP_E has a lower SNCD than pSp"] == "refuted"
    assert found["LSAP_E is closer to the images than e4e (LPIPS)"] == "refuted"
    assert found["SNCD falls as lambda grows"] == "not decided"


def test_seeds_that_overlap_or_a_single_one_decide_nothing():
    assert order_of((1.0, 3.1), (3.0, 4.0)) == "not decided"
    assert order_of((1.0,), (3.0,)) == "not decided"
    alone = compare_encoders(rows_of(), [PSP], SEEDS[:1], [], (), REFERENCES).encoders[0]
    assert math.isnan(alone.over_seeds("lpips").deviation)


def test_a_short_sweep_makes_no_claim_of_a_trend_and_a_long_one_does_so_even_with_one_seed():
    def claims(sweep):
        return outcomes(compare_encoders(rows_of(), [], SEEDS, sweep, SEEDS[:1], REFERENCES))

    assert claims(SWEEP[:4]) == {}
    assert claims(SWEEP)["SNCD falls as lambda grows"] == "confirmed"


def test_the_text_holds_both_tables_the_references_and_the_rule():
    text = comparison_markdown(compared())

    assert "| pSp | 2 | 0.0300 ± 0.0000 | 0.0605 ± 0.0007 | 0.1005 ± 0.0007 |" in text
    assert "identity" not in text  # the domain has no such network: no empty column
    assert "floor 0.0500" in text
    assert "- LSAP_E has a lower SNCD than e4e: **confirmed** (0.0625 and 0.0805)." in text
    assert "LSAP_E, λ = 0.5" in text


def test_the_table_of_encoders_names_each_once_and_the_figure_is_a_picture():
    comparison = compared()

    table = pq.read_table(io.BytesIO(encoders_parquet(comparison)))
    assert sorted(table.column("encoder").to_pylist()) == sorted(
        variant.encoder(seed) for variant in (PSP, E4E, *SWEEP) for seed in SEEDS
    )
    assert min(Image.open(io.BytesIO(draw(comparison))).size) > 400
