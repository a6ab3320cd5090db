"""Credentials are found in URLs, options and variables, and hidden wherever they were written."""

from __future__ import annotations

import traceback
from typing import Any

import fsspec.config
import pytest

from lsap_archive.stores.credentials import Secrets, credential_in, host_of

SECRET = "wJalrXUtnFEMI/K7MDENG+very secret"


@pytest.mark.parametrize(
    ("url", "found"),
    [
        ("/data/a:b@c/x.png", None),
        ("file:///data/a:b@c/x.png?token=1", None),
        ("s3://bucket/a:b@c/x.png", None),
        ("http://host:9000/a@b.png", None),
        ("https://host/a.png?size=3&name=key", None),
        ("abfs://container@account.dfs.core.windows.net/x", None),
        ("https://me:hunter2@host/a.png", "a password"),
        ("s3://AKIA:hunter2/with/slashes@bucket/x", "a password"),
        ("s3://AKIA:hunter2 with spaces@bucket/x", "a password"),
        ("gs://hunter2@bucket/x", "a password"),
        ("zip://a.png::https://host/b@c.zip", None),
        ("zip://a.png::https://me:hunter2@host/x.zip", "a password"),
        ("https://host/a.png?X-Amz-Credential=AKIA&X-Amz-Signature=5f3a", "a signed query"),
        ("https://host/a.png?sp=r&sig=5f3a", "a signed query"),
        ("https://host/a.png?GoogleAccessId=me&Signature=5f3a", "a signed query"),
        ("zip://a.png::https://host/x.zip?sig=5f3a", "a signed query"),
        ("filecache::file:///data::https://me:hunter2@host/x.zip", "a password"),
        ("HTTPS://ghp_token@host/a.png", "a password"),
        ("sftp://me@host/a.png", None),
        ("https://host/callback#access_token=2YotnFZFEjr1zCsicMWpAA", "a signed query"),
        ("https://host/a.png;jwt=abc", "a signed query"),
        ("https://host/AKIAIOSFODNN7EXAMPLE/a.png", "a token"),
        ("https://host/eyJhbGciOiJI.eyJzdWIiOiIx.SflKxwRJ/a.png", "a token"),
    ],
)
def test_what_of_a_url_is_a_credential(url: str, found: str | None) -> None:
    assert credential_in(url) == found


OPENS = """
X-Amz-Signature=5f3a X-Amz-Credential=AKIA%2F2026 X-Amz-Security-Token=FwoG X-Goog-Signature=5f3a x-oss-signature=5f3a
AWSAccessKeyId=AKIA GoogleAccessId=me OSSAccessKeyId=LTAI Signature=5f3a sig=5f3a%3D q-signature=5f3a hmac=5f3a
auth_key=17-0-0-5f3a auth=me%3Apw authkey=5f3a api_key=1 apiKey=1 x-api-key=1 apikey=a subscription-key=5f3a
Ocp-Apim-Subscription-Key=5f3a access_token=a accesstoken=a id_token=a refreshToken=a token=a wsSecret=5f3a
client_secret=a password=1 passwd=a pwd=a user_password=a passphrase=a credentials=a authorization=Basic+bWU6cHc%3D
hdnts=exp~hmac jwt=a secret=a private_key=a account-key=a sharedkey=a sas_token=a
key=q83Jf0aLk2PzR7xVbN key=AIzaSyD3xAmPl3K3yV4lu3xampl3 code=dGhpc0lzQUtleTEyMzQ1Ng%3D%3D
sign=0123456789abcdef0123456789abcdef
to%6ben=a AUTH_KEY=a
"""
OPENS_NOTHING = """
key=photo-1 key=thumbs/2026/photo_000123.png keyword=token keywords=secret sort_key=name partition_key=7 primary-key=12
monkey=1 turkey=2 keyframe=3 page=2 size=3 name=key author=anna authored=2026 compass=n passage=3 pass=2 design=a
sigma=0.5 max_tokens=100 token_count=5 token_type=bearer signature_version=4 SignatureMethod=x
X-Amz-Algorithm=AWS4-HMAC-SHA256 X-Amz-Expires=60 X-Amz-SignedHeaders=host
signed=true sign=plus code=404 session=morning secretary=anna v=5f3a
hash=0123456789abcdef0123456789abcdef id=q83Jf0aLk2PzR7xVbN token= auth=false tokenizer=bpe password_hint=a sid=7
"""


@pytest.mark.parametrize("query", OPENS.split())
def test_a_query_that_opens_something_is_told_by_its_kind_and_hidden(query: str) -> None:
    for url in (f"https://host/a.png?{query}", f"https://host/a.png?size=3&{query}", f"https://host/a#{query}"):
        assert credential_in(url) is not None
        hidden = Secrets().hide(f"GET {url} failed")
        assert query.partition("=")[2] not in hidden.partition("?")[2].partition("#")[2] or len(query) < 10
        assert "***" in hidden and credential_in(hidden.split()[1]) is None


@pytest.mark.parametrize("query", OPENS_NOTHING.split())
def test_a_query_that_only_sounds_like_it_is_none(query: str) -> None:
    assert credential_in(f"https://host/a.png?{query}") is None


@pytest.mark.parametrize("written", [SECRET, "wJalrXUtnFEMI%2FK7MDENG%2Bvery%20secret"])
@pytest.mark.parametrize("place", ["option", "nested option", "header", "pair", "variable", "configuration", "address"])
def test_a_secret_is_hidden_wherever_it_was_given(place: str, written: str, monkeypatch: pytest.MonkeyPatch) -> None:
    options: dict[str, Any] = {}
    if place == "option":
        options = {"secret": SECRET}
    elif place == "nested option":
        options = {"client_kwargs": {"aws_secret_access_key": SECRET}}
    elif place == "header":
        options = {"client_kwargs": {"headers": {"Authorization": f"Bearer {SECRET}"}}}
    elif place == "pair":
        options = {"client_kwargs": {"auth": ("me", SECRET)}}
    elif place == "variable":
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    elif place == "configuration":
        monkeypatch.setitem(fsspec.config.conf, "s3", {"secret": SECRET})
    else:
        monkeypatch.setenv("HTTPS_PROXY", "http://user:wJalrXUtnFEMI%2FK7MDENG%2Bvery%20secret@proxy:3128")
    secrets = Secrets(options)
    assert secrets.hide(f"cannot read x: {written}") == "cannot read x: ***"
    assert secrets.in_document(f'{{"a": "{written}"}}'.encode())
    assert SECRET not in repr(secrets)


def test_the_key_inside_a_connection_string_is_a_secret() -> None:
    secrets = Secrets({"connection_string": "AccountName=me;AccountKey=Zm9vYmFyCg==;EndpointSuffix=core"})
    assert secrets.hide("answer for Zm9vYmFyCg== of me") == "answer for *** of me"


def test_passwords_and_signatures_are_hidden_without_being_known() -> None:
    text = "GET http://me:hun/ter2@host/a?X-Amz-Signature=5f3a&size=3 and s3://AKIA@bucket"
    assert Secrets().hide(text) == "GET http://***@host/a?X-Amz-Signature=***&size=3 and s3://***@bucket"


def test_ordinary_texts_stay_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")  # a word, not a secret
    text = "cannot read s3://bucket/test.png at http://127.0.0.1:9000/path: the store answered 503"
    assert Secrets({"anon": True, "endpoint_url": "http://127.0.0.1:9000"}).hide(text) == text


def test_an_error_that_tells_a_secret_is_no_cause_to_be_shown() -> None:
    secrets = Secrets({"secret": SECRET})
    behind = ConnectionError(f"no answer for {SECRET}")
    telling, quiet = ValueError("refused"), ValueError("refused")
    telling.__cause__ = behind
    assert secrets.safe_cause(telling) is None and secrets.safe_cause(behind) is None
    assert secrets.safe_cause(quiet) is quiet
    assert SECRET in "".join(traceback.format_exception(telling))  # it is what would have been shown


def test_a_token_is_told_from_a_word_that_ends_like_one() -> None:
    told = Secrets().hide(
        "cannot write /tmp/disk_that_becomes_read_0/a (sk-proj1234567890abcdef, key=hf_abcdefghijklmnop12)"
    )
    assert told == "cannot write /tmp/disk_that_becomes_read_0/a (***, key=***)"


def test_the_host_of_a_url_is_shown_without_its_user() -> None:
    assert host_of("http://me:hunter2@store:9000/path") == "http://store:9000"
    assert host_of("store:9000") == host_of("http://[broken") == ""
