"""Tables of reports as rows for machines."""

from __future__ import annotations

from flows.commands.markdown_tables import rows_of

MEAN = {"value": 0.0296, "standard_error": 0.0019}
TEXT = """\
|  | Images | MSE | a\\|b | strength |
| --- | --- | ---: | ---: | ---: |
| LSAP_E | 64 ok | 0.0296 ± 0.0019 | 3 | 1.5e-3 |
| reference: floor |  | - | nan | out of reach |

Means over ok images ± standard error.

| edit | strength |
| --- | ---: |
| 3 | -2.5 |
"""


def test_numbers_of_a_table_are_numbers() -> None:
    assert rows_of(TEXT) == [
        {
            "name": "LSAP_E",
            "Images": "64 ok",
            "MSE": {"value": 0.0296, "standard_error": 0.0019},
            "a|b": 3,
            "strength": 0.0015,
        },
        {"name": "reference: floor", "Images": None, "MSE": None, "a|b": "nan", "strength": "out of reach"},
        {"edit": 3, "strength": -2.5},
    ]


def test_a_text_without_tables_has_no_rows() -> None:
    assert rows_of("nothing | here\n") == []
