"""Filesystems that are not this machine's: a real S3 server of moto, and a file:// URL."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from moto.server import ThreadedMotoServer
from s3fs import S3FileSystem

BUCKET = "runs"


@pytest.fixture(scope="session")
def s3_server() -> Iterator[str]:
    """Address of an S3 server on a free port of this machine, in threads of this process."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    _, port = server.get_host_and_port()
    yield f"http://127.0.0.1:{port}"
    server.stop()


@pytest.fixture
def s3(s3_server: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """URL of an empty bucket; this process and its workers find the server by the environment."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_server)
    # fsspec keeps its filesystems, and with them the server's address of an earlier test.
    S3FileSystem.clear_instance_cache()
    reset = urllib.request.Request(f"{s3_server}/moto-api/reset", method="POST")
    with urllib.request.urlopen(reset) as answer:
        assert json.load(answer) == {"status": "ok"}
    make = urllib.request.Request(f"{s3_server}/{BUCKET}", method="PUT")
    with urllib.request.urlopen(make):
        pass
    return f"s3://{BUCKET}"


@pytest.fixture(params=["s3", "file"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """URL of a place with nothing in it, on each kind of filesystem in turn."""
    if request.param == "s3":
        return str(request.getfixturevalue("s3"))
    (tmp_path / "elsewhere").mkdir()
    return f"file://{tmp_path}/elsewhere"
