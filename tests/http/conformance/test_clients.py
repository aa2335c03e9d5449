"""Cases 62, 63 and 106: both generations of client at work, each as a black box."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator

import pytest

from tests.http.clients import (
    BlobstoreError,
    ConflictError,
    DavClient,
    FileNotFound,
    StorageCli,
    partitioned,
)
from tests.http.stocknginx import PASSWORD, SECRET, USER
from tests.http.targets import OURS, Area

GUID = "ABcd1234-0000-4000-8000-00000000000"


@pytest.fixture
def dav(area: Area) -> Iterator[DavClient]:
    client = DavClient(area.target.ports.internal, area.name, USER, PASSWORD)
    yield client
    client.close()


@pytest.fixture
def caches(area: Area) -> Iterator[DavClient]:
    """The client of buildpack caches: below a root directory."""
    endpoint = area.target.ports.internal
    client = DavClient(endpoint, area.name, USER, PASSWORD, root_dir="buildpack_cache")
    yield client
    client.close()


@pytest.fixture
def cli(area: Area) -> StorageCli:
    return StorageCli(area.target.ports.internal, area.name, USER, PASSWORD, SECRET)


def test_dav_client_life_of_a_blob(area: Area, dav: DavClient) -> None:
    data = os.urandom(100_000)
    assert not dav.exists(f"{GUID}1")
    assert dav.blob(f"{GUID}1") is None
    with pytest.raises(BlobstoreError, match="404"):
        dav.download(f"{GUID}1")
    dav.upload(f"{GUID}1", data)
    assert dav.exists(f"{GUID}1")
    assert dav.download(f"{GUID}1") == data
    assert area.file(partitioned(f"{GUID}1")).read_bytes() == data
    kept = dav.blob(f"{GUID}1")
    assert kept is not None
    assert kept.content_length == "100000"
    dav.copy(f"{GUID}1", f"{GUID}2")
    assert dav.blob(f"{GUID}2") == kept
    dav.delete(f"{GUID}1")
    assert not dav.exists(f"{GUID}1")
    with pytest.raises(FileNotFound):
        dav.delete(f"{GUID}1")
    dav.delete_blob(f"{GUID}1")
    dav.delete_blob(f"{GUID}2")
    assert not dav.exists(f"{GUID}2")


def test_dav_client_copy_of_nothing_leaves_an_empty_destination(area: Area, dav: DavClient) -> None:
    with pytest.raises(FileNotFound):
        dav.copy(f"{GUID}1", f"{GUID}2")
    assert area.file(partitioned(f"{GUID}2")).stat().st_size == 0


def test_dav_client_refuses_a_directory(area: Area, dav: DavClient) -> None:
    area.put(f"{partitioned(GUID + '1')}/sha")
    with pytest.raises(BlobstoreError, match="301"):
        dav.exists(f"{GUID}1")
    with pytest.raises(ConflictError):
        dav.delete(f"{GUID}1")


def test_dav_client_buildpack_caches(area: Area, caches: DavClient) -> None:
    with pytest.raises(FileNotFound):
        caches.delete_all()
    caches.delete_all_in_path(f"{GUID}1")
    for number in range(5):
        caches.upload(f"{GUID}{number}/cflinuxfs4", b"cache")
        caches.upload(f"{GUID}{number}/cflinuxfs4", b"cache, again")
    caches.delete_all_in_path(f"{GUID}1")
    assert not caches.exists(f"{GUID}1/cflinuxfs4")
    assert caches.exists(f"{GUID}2/cflinuxfs4")
    caches.delete_all()
    assert not area.file("buildpack_cache").exists()
    caches.upload(f"{GUID}2/cflinuxfs4", b"anew")
    assert caches.download(f"{GUID}2/cflinuxfs4") == b"anew"


def test_case_063_files_for_yields_nothing_and_does_not_fail(area: Area, dav: DavClient) -> None:
    dav.upload(f"{GUID}1", b"x")
    assert list(dav.files_for()) == []
    area.http.request("DELETE", f"/admin/{area.name}/")
    with pytest.raises(BlobstoreError, match="Undefined namespace prefix"):
        list(dav.files_for())


@pytest.mark.on(*OURS, why="the signer is another program")
def test_dav_client_signs(area: Area, dav: DavClient) -> None:
    dav.upload(f"{GUID}1", b"signed content")
    with area.target.public(tls=True) as http:
        assert http.request("GET", dav.sign(f"{GUID}1")).body == b"signed content"


def test_storage_cli_life_of_a_blob(area: Area, cli: StorageCli) -> None:
    data = os.urandom(100_000)
    one, two = partitioned(f"{GUID}1"), partitioned(f"{GUID}2")
    assert cli.exists(one).code == 3
    assert cli.connections == 3, "a miss is tried three times"
    assert cli.properties(one).output == "{}"
    assert cli.get(one).code == 1
    assert cli.put(data, one).code == 0
    cli.connections = 0
    assert cli.exists(one).code == 0
    assert cli.connections == 1
    assert cli.get(one).data == data
    printed = json.loads(cli.properties(one).output)
    assert printed["content_length"] == 100_000
    assert cli.copy(one, two).code == 0
    assert json.loads(cli.properties(two).output) == printed
    assert cli.delete(one).code == 0
    assert cli.delete(one).code == 0
    assert cli.copy(one, two).code == 1
    assert cli.get(two).data == b"", "the empty destination stays"
    assert cli.delete(partitioned("x/y").rpartition("/")[0]).code == 0


def test_case_062_walk_finds_every_blob_once(area: Area, cli: StorageCli) -> None:
    """Names that need escaping included; dot files are not listed."""
    blobs = {f"{n % 4:02x}/{n % 3:02x}/guid{n}/{n * 7919:08x}" for n in range(24)}
    blobs |= {"00/00/plain", "buildpack_cache/ab/cd/g/stack", "00/00/a & <b> é+%41"}
    for blob in sorted(blobs):
        assert cli.put(blob.encode(), blob).code == 0
    area.file(".hidden").write_bytes(b"x")
    assert sorted(cli.list().output.splitlines()) == sorted(blobs)
    for prefix in ("00", "00/", "00/00/pl", "01/01/guid1", "buildpack_cache", "zz", "zz/yy/x"):
        expected = sorted(blob for blob in blobs if blob.startswith(prefix))
        assert cli.list(prefix).output.splitlines() == expected, prefix
    assert cli.delete_recursive("buildpack_cache").code == 0
    assert cli.delete_recursive("00/00/plain").code == 0
    assert cli.delete_recursive("absent").code == 0
    assert cli.list("buildpack_cache").output == ""
    assert len(cli.list().output.splitlines()) == len(blobs) - 2


@pytest.mark.on(*OURS, why="Debian's nginx has no HMAC module")
def test_storage_cli_signs(area: Area, cli: StorageCli) -> None:
    area.put()
    url = cli.sign("ab/cd/abcd-1", "GET", 600, time.time()).output
    path = url.removeprefix(area.target.ports.internal.base)
    with area.target.public() as http:
        assert http.request("GET", path).body == b"content"


def test_case_106_the_benchmark_of_cloud_controller(area: Area, dav: DavClient) -> None:
    """Its requests in its order, at a scale for tests: resources, a package, droplets."""
    resources = {f"{number:040x}": b"foo" * (21_846 + number) for number in range(20)}
    for sha1, data in resources.items():
        assert not dav.exists(sha1)
        dav.upload(sha1, data)
    assert all(dav.exists(sha1) for sha1 in resources)
    package = b"".join(resources.values())
    dav.upload("package-guid", package)
    assert dav.download("package-guid") == package
    for number, size in enumerate((5_000, 10_000, 100_000, 1_000_000, 10_000_000)):
        dav.upload(f"droplet-{number}", bytes(size))
        assert dav.download(f"droplet-{number}") == bytes(size)
        dav.delete(f"droplet-{number}")
    for key in (*resources, "package-guid"):
        dav.delete(key)
    assert [name for name in area.names() if not name.endswith("/")] == []
