"""The address of a store: a path or a URL."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from castore.errors import UsageError
from castore.storage import is_url, normalized_url, open_storage
from castore.storage.url import StoreUrl


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("s3://bucket", "s3://bucket"),
        ("s3://bucket/", "s3://bucket"),
        ("S3://bucket//a///b/", "s3://bucket/a/b"),
        ("ssh://User@Host:22/srv/a%20b", "ssh://User@Host:22/srv/a%20b"),
        ("sftp://host/~/store", "sftp://host/~/store"),
        ("ssh://[::1]/srv", "ssh://[::1]/srv"),
        ("az://container/%C3%A9", "az://container/%C3%A9"),
    ],
)
def test_a_url_has_one_form(text, expected):
    assert is_url(text)
    assert normalized_url(text) == expected
    assert normalized_url(expected) == expected


@pytest.mark.parametrize("text", ["/srv/store", "store", "./s3:/x", "C:\\x", "a b://x", "s3:/bucket", "~/x", ""])
def test_a_path_is_no_url(text):
    assert not is_url(text)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("s4://bucket/x", "no store of the kind s4://"),
        ("http://host/x", "no store of the kind http://"),
        ("file:///srv/x", "is not a URL|no store of the kind"),
        ("s3:///x", "is not a URL"),
        ("s3://", "is not a URL"),
        ("ssh://user:geheim@host/x", "contains a password"),
        ("ssh://user:ge@heim@host/x", "contains a password|is not a URL"),
        ("s3://bucket/x?versionId=1", "query"),
        ("s3://bucket/x#y", "query"),
        ("s3://bucket/../x", "'.' or '..'"),
        ("s3://bucket/a/%2e%2e/x", "'.' or '..'"),
        ("ssh://host:99999/x", "no port"),
        ("ssh://host:x/x", "is not a URL"),
        ("s3://bucket/a b", "%20"),
        ("s3://bucket/%00", "control character"),
        ("s3://bucket/%0a", "control character"),
        ("s3://bucket/%ff", "not UTF-8"),
        ("s3://bucket/\n", "is not a URL"),
    ],
)
def test_what_is_no_url_of_a_store_is_refused_with_the_reason(text, reason):
    with pytest.raises(UsageError, match=reason) as refused:
        normalized_url(text)
    assert "geheim" not in str(refused.value)
    assert "heim" not in str(refused.value)
    with pytest.raises(UsageError):
        open_storage(text)


_parts = st.text(st.characters(codec="utf-8", min_codepoint=0x20, exclude_characters="\x7f/"), min_size=1, max_size=8)


@given(st.sampled_from(["s3", "ssh", "sftp"]), st.none() | st.from_regex("[a-z]{1,8}", fullmatch=True), st.none() | st.integers(1, 65535), st.lists(_parts.filter(lambda part: part not in {".", ".."}), max_size=4))
def test_a_url_is_read_as_it_was_written(scheme, user, port, path):
    from urllib.parse import quote

    text = f"{scheme}://{f'{user}@' if user else ''}host{f':{port}' if port else ''}/{'/'.join(quote(part, safe='') for part in path)}"
    url = StoreUrl(text)
    assert (url.scheme, url.user, url.host, url.port, url.path) == (scheme, user, "host", port, "/".join(path))
    assert vars(StoreUrl(str(url))) == vars(url)
