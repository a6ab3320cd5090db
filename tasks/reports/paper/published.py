"""The numbers that were published: LSAP's Tables 1 to 4, and the benchmark in its authors' toolbox.

They stand beside what was measured only where domain and images are the paper's (`PAPER_IMAGES`). A mark in the
place of a number is the paper's own: "–" was not measured, "×" was judged unnatural.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from lsap_core.presets import METHODS

NOT_MEASURED, UNNATURAL = "–", "×"

Published = float | str
Rows = Mapping[str, Mapping[str, Published]]


@dataclass(frozen=True)
class PaperImages:
    """On what the paper measured a domain.

    Attributes:
        name: of the images.
        number: how many they are.
        note: what is not known of them.
    """

    name: str
    number: int
    note: str = ""


PAPER_IMAGES: Mapping[str, PaperImages] = {
    "face": PaperImages("CelebA-HQ test", 2824, "the images of CelebA-HQ whose CelebA partition is test"),
    "car": PaperImages("Stanford Cars test", 1000, "which 1,000 of its 8,041 images were drawn is not published"),
    "church": PaperImages("LSUN church, evaluation", 300),
    "wild": PaperImages("AFHQ Wild test", 500, "as in AFHQ v1; the paper gives no number"),
}

TITLES: Mapping[str, str] = {
    "hfgi_e4e": "HFGI, e4e",
    "hfgi_lsap_e": "HFGI, LSAP",
    "sam_e4e": "SAM, e4e",
    "sam_lsap_e": "SAM, LSAP",
    "hyperstyle": "HyperStyle, W encoder",
    "pti": "PTI, W pivot",
    "dhr_e4e": "DHR, e4e",
    "dhr_lsap_e": "DHR, LSAP",
    **{name: method.title for name, method in METHODS.items()},
}
"""Rows of the published tables."""


AS_PRINTED: Mapping[str, str] = {"lsap_e": "LSAP"}
"""What the paper calls an embedding where it names a refinement of its codes."""


def refined_title(refiner: str, embedding: str, title: str) -> str:
    """What a refined method is called, as the paper has it.

    Args:
        refiner: title of the refiner.
        embedding: name of the embedding.
        title: of the embedding.

    Example:
        >>> refined_title("HFGI", "lsap_e", "LSAP_E"), refined_title("PTI", "psp", "pSp")
        ('HFGI, LSAP', 'PTI, pSp')
    """
    return f"{refiner}, {AS_PRINTED.get(embedding, title)}"


def published_row(method: str) -> str:
    """Name of the row of the published tables that belongs to a method, whether there is one or not.

    Example:
        >>> published_row("e4e/hfgi"), published_row("e4e")
        ('hfgi_e4e', 'e4e')
    """
    return "_".join(reversed(method.split("/")))


def _rows(columns: Sequence[str], rows: Mapping[str, Sequence[Published | None]]) -> Rows:
    return {
        row: {column: value for column, value in zip(columns, values, strict=True) if value is not None}
        for row, values in rows.items()
    }


_EDITS = ("pose", "smile", "age")
_FIDELITY = ("mse", "lpips", "identity", "sncd")
_LEC = tuple(f"lec/{edit}" for edit in _EDITS)
_AFTER = tuple(f"identity_after/{edit}" for edit in _EDITS)

TABLE_1 = _rows(
    (*_FIDELITY, *_LEC, *_AFTER),
    {
        "psp": (0.0351, 0.1628, 0.5591, 0.1013, 89.3529, 55.8694, 64.6177, 0.4374, 0.4785, 0.3077),
        "e4e": (0.0475, 0.1991, 0.4966, 0.0495, 26.6551, 22.3202, 23.2861, 0.4178, 0.4173, 0.3441),
        "lsap_e": (0.0397, 0.1766, 0.5305, 0.0385, 19.0211, 14.0360, 14.6715, 0.4597, 0.4519, 0.3944),
        "stylegan2_w": (0.0696, 0.1987, 0.3066, 0.0656, "–", "–", "–", 0.2389, 0.2470, "×"),
        "lsap_o_w": (0.0690, 0.1986, 0.2989, 0.0492, "–", "–", "–", 0.2182, 0.2362, "×"),
        "stylegan2_w_plus": (0.0279, 0.1179, 0.7463, 0.1063, "–", "–", "–", "×", "×", "×"),
        "lsap_o_w_plus": (0.0359, 0.1376, 0.6587, 0.0407, "–", "–", "–", 0.4846, 0.5161, "×"),
        "hfgi_e4e": (0.0210, 0.1172, 0.6816, "–", "–", "–", "–", "×", 0.5409, 0.4763),
        "hfgi_lsap_e": (0.0210, 0.0945, 0.7405, "–", "–", "–", "–", "×", 0.5766, 0.5704),
        "sam_e4e": (0.0143, 0.1104, 0.5568, "–", "–", "–", "–", "–", "–", "–"),
        "sam_lsap_e": (0.0117, 0.0939, 0.6184, "–", "–", "–", "–", "–", "–", "–"),
    },
)
"""Table 1, faces."""

TABLE_2 = _rows(
    ("disalignment_w", "disalignment_s", "disalignment_s_n"),
    {"psp": (63.50, 859.02, 0.10), "e4e": (11.63, 299.53, 0.03), "lsap_e": (11.87, 312.20, 0.03)},
)
"""Table 2, faces: 5,000 synthetic images."""

TABLE_3 = _rows(
    (*_FIDELITY, *_LEC),
    {
        "0": (0.0369, 0.1657, 0.5512, 0.0736, 24.8245, 22.5007, 24.8069),
        "0.1": (0.0382, 0.1703, 0.5438, 0.0416, 19.1594, 14.0133, 15.2246),
        "0.25": (0.0391, 0.1737, 0.5410, 0.0395, 19.1345, 14.1382, 15.1599),
        "0.5": (0.0397, 0.1766, 0.5305, 0.0385, 19.0211, 14.0360, 14.6715),
        "0.75": (0.0406, 0.1792, 0.5222, 0.0381, 19.0949, 14.0128, 14.3198),
        "1": (0.0413, 0.1809, 0.5168, 0.0378, 15.8013, 13.8433, 14.6084),
    },
)
"""Table 3, faces: LSAP_E by its lambda, as `f"{value:g}"` writes it."""

_SHORT = ("mse", "lpips", "sncd")
TABLE_4: Mapping[str, Rows] = {
    "car": _rows(
        _SHORT,
        {
            "e4e": (0.1201, 0.3252, 0.0646),
            "lsap_e": (0.1049, 0.3106, 0.0492),
            "sam_e4e": (0.0289, 0.1506, "–"),
            "sam_lsap_e": (0.0247, 0.1361, "–"),
        },
    ),
    "church": _rows(_SHORT, {"e4e": (0.1505, 0.4307, 0.0761), "lsap_e": (0.1144, 0.3426, 0.0588)}),
    "wild": _rows(_SHORT, {"e4e": (0.0882, 0.2658, 0.0379), "lsap_e": (0.0785, 0.2524, 0.0224)}),
}
"""Table 4 by domain; the paper's authors trained the e4e of wild animals themselves and did not release it."""

PSNR_OFFSET = 3.0103
"""dB to add to the toolbox's PSNR: it takes 2, not 4, for the squared range of [-1, 1]."""

BENCHMARK = _rows(
    ("psnr", "mse", "lpips", "identity", "frechet"),
    {
        "stylegan2_w": (15.8460, 0.0670, 0.1967, 0.32, 25.7447),
        "stylegan2_w_plus": (20.5940, 0.0242, 0.1092, 0.77, 17.0812),
        "psp": (18.0348, 0.0345, 0.1591, 0.56, 25.2540),
        "e4e": (16.6616, 0.0472, 0.1974, 0.50, 28.4952),
        "lsap_e": (17.4958, 0.0391, 0.1765, 0.53, 29.3118),
        "restyle_e4e": (17.0903, 0.0428, 0.1904, 0.51, 25.5141),
        "hyperstyle": (20.0864, 0.0219, 0.0985, 0.74, 21.6660),
        "pti": (24.6131, 0.0082, 0.0817, 0.85, 14.2792),
        "hfgi_e4e": (20.1402, 0.0210, 0.1166, 0.68, 16.0659),
        "sam_e4e": (20.5933, 0.0193, 0.1442, 0.57, 17.3631),
        "sam_lsap_e": (21.6179, 0.0152, 0.1205, 0.60, 15.2710),
        "dhr_e4e": (28.1661, 0.0035, 0.0438, 0.87, 5.9960),
        "dhr_lsap_e": (28.2786, 0.0034, 0.0422, 0.88, 6.0594),
    },
)
"""The benchmark in the README of GANInverter, the authors' toolbox: CelebA-HQ test, its PSNR as printed there."""


def paper_problem(domain: str, num_images: int) -> str | None:
    """Why the paper's numbers do not belong beside those of a run; None where they do.

    Example:
        >>> paper_problem("face", 2824) is None
        True
        >>> paper_problem("face", 64)
        'the paper measured on the 2,824 images of CelebA-HQ test, this run on 64'
    """
    images = PAPER_IMAGES.get(domain)
    if images is None:
        return f'the paper has no domain "{domain}"; its domains are {", ".join(PAPER_IMAGES)}'
    if num_images != images.number:
        return f"the paper measured on the {images.number:,} images of {images.name}, this run on {num_images:,}"
    return None
