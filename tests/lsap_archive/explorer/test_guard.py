"""Who is answered: this machine by its name, pages of the explorer alone, and with a token those who know it."""

from __future__ import annotations

import socket
import subprocess
import sys
from typing import Any

import pytest
from starlette.testclient import TestClient

from lsap_archive import Archive, ArchiveMismatchError, explore_archive
from lsap_archive.explorer.app import explorer_app

TOKEN = "a-token-of-some-length"
DOORS = ("/", "/static/explorer.js", "/api/archive", "/api/selection", "/picture", "/live", "/download/ids.txt", "/no")


@pytest.fixture(scope="module")
def guarded(shown_archive: Archive) -> Any:
    return explorer_app(shown_archive, token=TOKEN, hosts=None)


def test_every_answer_allows_the_page_its_own_files_alone(client: TestClient) -> None:
    for door in DOORS:
        headers = client.get(door).headers
        assert headers["content-security-policy"].startswith("default-src 'self';")
        assert "frame-ancestors 'none'" in headers["content-security-policy"]
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["cross-origin-resource-policy"] == "same-origin"


@pytest.mark.parametrize("door", DOORS)
def test_another_name_for_this_machine_is_refused(client: TestClient, door: str) -> None:
    for host in ("attacker.example", "attacker.example:8765", "localhost.attacker.example", "127.0.0.1.example", ""):
        answer = client.get(door, headers={"Host": host})
        assert answer.status_code == 421, host
    for host in ("localhost:9000", "127.0.0.1", "[::1]:8765", "LOCALHOST"):
        assert client.get("/api/archive", headers={"Host": host}).status_code == 200


@pytest.mark.parametrize("site", ["cross-site", "same-site"])
def test_a_page_of_another_site_gets_nothing_but_the_page_itself_in_a_window(client: TestClient, site: str) -> None:
    for door in DOORS:
        for mode in ("no-cors", "cors", "navigate"):
            headers = {"Sec-Fetch-Site": site, "Sec-Fetch-Mode": mode}
            wanted = 200 if (door, mode) == ("/", "navigate") else 403
            assert client.get(door, headers=headers).status_code == wanted, (door, mode)
    own = {"Sec-Fetch-Site": "same-origin", "Sec-Fetch-Mode": "cors"}
    assert client.get("/api/archive", headers=own).status_code == 200


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS"])
def test_nothing_is_written(client: TestClient, method: str) -> None:
    for door in DOORS:
        assert client.request(method, door).status_code == 405


def test_with_a_token_only_those_who_showed_it_are_answered(guarded: Any) -> None:
    stranger = TestClient(guarded, base_url="http://machine:8765")
    for door in DOORS:
        answer = stranger.get(door)
        assert answer.status_code == 403 and "A token is wanted" in answer.text
        assert "content-security-policy" in answer.headers
    assert stranger.get("/", params={"token": TOKEN[:-1]}).status_code == 403
    assert stranger.get("/", params={"token": "\N{SNOWMAN}"}).status_code == 403
    assert stranger.get("/", headers={"Cookie": "lsap_explorer_00000000=x"}).status_code == 403

    reader = TestClient(guarded, base_url="http://machine:8765", follow_redirects=False)
    shown = reader.get("/", params={"token": TOKEN, "sort": "mse", "text": "a b&c"})
    assert shown.status_code == 303 and shown.headers["location"] == "/?sort=mse&text=a+b%26c"
    cookie = shown.headers["set-cookie"]
    assert "HttpOnly" in cookie and "SameSite=strict" in cookie and TOKEN not in cookie
    assert reader.get("/api/archive").status_code == 200


def test_a_token_leads_nowhere_else(guarded: Any) -> None:
    reader = TestClient(guarded, base_url="http://machine:8765", follow_redirects=False)
    shown = reader.get("//attacker.example/", params={"token": TOKEN})
    assert shown.headers["location"] == "/"


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        ({"host": "0.0.0.0"}, "other machines reach 0.0.0.0: give --token auto as well"),
        ({"host": ""}, "other machines reach every address"),
        ({"host": "::"}, "give --token auto as well"),
        ({"host": "192.0.2.1"}, "give --token auto as well"),
        ({"host": "example.invalid"}, "give --token auto as well"),
        ({"token": "short"}, "a token of 5 characters can be guessed"),
        ({"token": ""}, "a token of 0 characters can be guessed"),
        ({"port": 70_000}, "port 70000 is none: 0 to 65535 is wanted"),
    ],
    ids=str,
)
def test_what_other_machines_could_read_is_not_begun(shown_archive: Archive, asked: dict[str, Any], told: str) -> None:
    with pytest.raises(ArchiveMismatchError, match=told):
        explore_archive(shown_archive, announce=pytest.fail, **asked)


def test_a_port_that_is_taken_is_told(shown_archive: Archive) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ArchiveMismatchError, match=f"nothing can listen on 127.0.0.1, port {port}: .*--port"):
            explore_archive(shown_archive, port=port, announce=pytest.fail)


def test_the_reader_alone_imports_nothing_of_the_explorer() -> None:
    script = (
        "import sys, lsap_archive.commands.command; sys.modules['starlette'] = None\n"
        "assert not {'jinja2', 'uvicorn'} & set(sys.modules)\n"
        "try: lsap_archive.explore_archive(None)\n"
        "except lsap_archive.ArchiveMismatchError as error: print(error)"
    )
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert "pip install 'lsap-archive[explore]'" in run.stdout, run.stderr
