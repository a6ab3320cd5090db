"""What settings of a training are refused."""

from typing import Any

import pytest

from lsap_core.errors import ConfigError
from lsap_core.training import EncoderTrainingSettings


def test_the_defaults_are_lsap_e() -> None:
    assert EncoderTrainingSettings().weights == {
        "l2": 1.0,
        "lpips": 0.8,
        "identity": 0.1,
        "sncd": 0.5,
        "delta": 2e-4,
    }


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"heads": "many"}, 'heads is "many"; wanted one of "direct", "offsets", "single"'),
        ({"precision": "float8"}, 'precision is "float8"; wanted one of "float32", "bfloat16", "float16"'),
        ({"batch_size": 0}, "batch_size is 0; wanted at least 1"),
        ({"num_steps": 0}, "num_steps is 0; wanted at least 1"),
        ({"progressive_every": 0}, "progressive_every is 0; wanted at least 1"),
        ({"r1_every": 0}, "r1_every is 0; wanted at least 1"),
        ({"learning_rate": float("inf")}, "learning_rate is inf; wanted a positive number"),
        ({"discriminator_learning_rate": 0.0}, "discriminator_learning_rate is 0.0"),
        ({"sncd_weight": -0.5}, "sncd_weight is -0.5; wanted a number that is not negative"),
        ({"delta_weight": float("nan")}, "delta_weight is nan"),
        ({"pool_size": -1}, "pool_size is -1"),
        ({"l2_weight": 0, "lpips_weight": 0, "identity_weight": 0}, "nothing would look at images"),
        ({"num_passes": 5}, "num_passes is 5; wanted 1, or is_iterative: true"),
        ({"progressive_start": -1}, "progressive_start is -1"),
        ({"heads": "direct"}, 'progressive_start is 20000 with heads "direct"; wanted null'),
        ({"accumulate": 9}, "accumulate is 9; wanted at most batch_size, 8"),
    ],
)
def test_impossible_settings_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        EncoderTrainingSettings(**change)
