"""Where we are: what of the environment is refused before anybody tells of it."""

from __future__ import annotations

import pytest

from lsap_core.errors import ConfigError
from tasks.settings import Settings


@pytest.mark.parametrize(
    "address",
    [
        "ray://me:hunter2@head:10001",
        "me:hunter2@head:6379",
        "ray://hunter2@head:10001",
        "head:6379?auth_key=hunter2",
        "ray://head:10001/?token=hunter2",
    ],
)
@pytest.mark.parametrize("variable", ["LSAP_RAY_ADDRESS", "RAY_ADDRESS"])
def test_an_address_of_ray_with_a_credential_is_refused_and_not_shown(
    variable: str, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LSAP_RAY_ADDRESS", "auto")
    monkeypatch.setenv(variable, address)
    with pytest.raises(ConfigError, match=rf"^{variable} has a user or a query.*wanted host:port") as told:
        Settings.from_environment()
    assert "hunter2" not in str(told.value)


def test_what_another_program_is_told_of_ray_does_not_matter_where_it_is_not_asked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "ray://me:hunter2@head:10001")
    monkeypatch.setenv("LSAP_RAY_ADDRESS", "")
    assert Settings.from_environment().is_alone
