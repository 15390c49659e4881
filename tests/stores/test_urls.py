"""URLs of caches: known schemes, no credentials, and nothing that a message could leak."""

from pathlib import Path

import pytest

from eaglepipe.errors import ConfigError
from eaglepipe.stores.urls import StoreUrl, parse_location, redacted


def test_each_scheme_names_a_store_or_a_path() -> None:
    assert parse_location("s3://bucket/a/b/") == StoreUrl(scheme="s3", path="bucket/a/b")
    assert parse_location("S3://bucket") == StoreUrl(scheme="s3", path="bucket")
    assert parse_location("gs://bucket/a") == StoreUrl(scheme="gs", path="bucket/a")
    assert str(parse_location("hf://datasets/user/caches@main/x")) == "hf://datasets/user/caches@main/x"
    assert parse_location("file:///data/my%20caches") == Path("/data/my caches")
    assert parse_location("data/caches") == Path("data/caches")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("s4://bucket/a", "did you mean s3://?"),
        ("ftp://host/a", "is none of s3://, gs://, hf://, file://"),
        ("s3://user:secret-word@bucket/a", "AWS_ACCESS_KEY_ID"),
        ("gs://secret-word@bucket/a", "GOOGLE_APPLICATION_CREDENTIALS"),
        ("s3://bucket/a?token=secret-word", "has no query"),
        ("s3://bucket/../a", "expected such as s3://bucket/caches"),
        ("s3://", "expected such as s3://bucket/caches"),
        ("s3://bucket//a", "expected such as s3://bucket/caches"),
        ("hf://datasets/user", "names no repository"),
        ("file://host/a", "on another host"),
        ("s3:/bucket/a", "one slash is missing"),
    ],
)
def test_a_wrong_url_is_refused_without_its_secrets(text: str, said: str) -> None:
    with pytest.raises(ConfigError) as error:
        parse_location(text)
    assert said in str(error.value)
    assert "secret-word" not in str(error.value)


def test_text_of_libraries_is_shown_without_users_and_queries() -> None:
    text = "GET https://user:secret-word@host/a?X-Amz-Signature=secret-word and s3://secret-word@bucket/a failed"
    assert "secret-word" not in redacted(text)
    assert redacted("hf://datasets/user/caches@main/x: no") == "hf://datasets/user/caches@main/x: no"
    assert redacted("a mail to a@b, and http://host/a") == "a mail to a@b, and http://host/a"
