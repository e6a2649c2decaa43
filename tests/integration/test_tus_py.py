"""The tus clients of PyPI against a real daemon: tuspy, and aiotus, which was written apart."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path

import aiotus
import pytest
from tusclient.client import TusClient
from tusclient.exceptions import TusCommunicationError
from tusclient.storage.filestorage import FileStorage
from tusclient.uploader.uploader import Uploader

from tests.integration.cutter import Cutter
from tests.integration.places import SIZE, Place

MIB = 1024**2
HEADERS = 8192


def uploader(place: Place, chunk: int = 3 * MIB, **more: object) -> Uploader:
    client = TusClient(place.endpoint)
    made: Uploader = client.uploader(
        str(place.file), chunk_size=chunk, metadata=place.metadata, **more
    )
    return made


# -- tuspy -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("chunk", [SIZE, 5 * MIB, 777_777])
@pytest.mark.parametrize("checksum", [False, True])
def test_tuspy_uploads(place: Place, chunk: int, checksum: bool) -> None:
    """In one piece and in many, with SHA-1 of each and without."""
    uploader(place, chunk, upload_checksum=checksum).upload()
    place.check()


def test_tuspy_goes_on_after_a_restart(place: Place, cutter: Cutter, tmp_path: Path) -> None:
    """By the URL in its own store; no acknowledged byte is sent again."""
    store = {"store_url": True, "url_storage": FileStorage(str(tmp_path / "urls.json"))}
    base = cutter.sent
    uploader(place, MIB, **store).upload(stop_at=5 * MIB)
    again = uploader(place, MIB, **store)
    assert again.offset == 5 * MIB
    again.upload()
    place.check()
    assert cutter.sent - base < SIZE + 20 * HEADERS


def test_tuspy_goes_on_after_cuts(place: Place, cutter: Cutter) -> None:
    rng = random.Random(11)
    cuts = sorted(rng.sample(range(1000, SIZE), 4))
    upload = uploader(place, SIZE, retries=10, retry_delay=0.1)
    upload.set_url(upload.create_url())
    cutter.cut_at(*(cutter.sent + one for one in cuts))
    upload.upload()
    assert cutter.cuts == len(cuts)
    place.check()


def test_tuspy_learns_that_there_is_no_room(place: Place, tmp_path: Path) -> None:
    """It reads the status of a refusal, before a byte is sent."""
    place.file = tmp_path / "four terabytes"
    with place.file.open("wb") as sparse:
        sparse.truncate(2**42)
    with pytest.raises(TusCommunicationError) as caught:
        uploader(place).create_url()
    assert caught.value.status_code in (413, 507)


# -- aiotus ----------------------------------------------------------------------------------------


def config() -> aiotus.RetryConfiguration:
    return aiotus.RetryConfiguration(retry_attempts=8, max_retry_period_seconds=0.2)


def metadata(place: Place) -> dict[str, bytes | None]:
    return {key: value.encode() for key, value in place.metadata.items()}


def test_aiotus_uploads(place: Place) -> None:
    """And reads back what it said of the file."""

    async def work() -> None:
        with place.file.open("rb") as file:
            url = await aiotus.upload(place.endpoint, file, metadata(place), config=config())
        assert url is not None
        said = await aiotus.metadata(url, config=config())
        assert said == metadata(place)

    asyncio.run(work())
    place.check()


def test_aiotus_goes_on_after_cuts(place: Place, cutter: Cutter) -> None:
    cutter.cut_at(*(cutter.sent + one for one in (2 * MIB, 7 * MIB, 11 * MIB)))

    async def work() -> None:
        with place.file.open("rb") as file:
            assert await aiotus.upload(place.endpoint, file, metadata(place), config=config())

    asyncio.run(work())
    assert cutter.cuts == 3
    place.check()


def test_aiotus_joins_parts(place: Place, tmp_path: Path) -> None:
    """Several files become one, three at a time."""
    data = place.file.read_bytes()
    parts = [data[: 5 * MIB], data[5 * MIB : 6 * MIB], data[6 * MIB :]]
    paths = []
    for number, part in enumerate(parts):
        paths.append(tmp_path / f"part {number}")
        paths[-1].write_bytes(part)

    async def work() -> None:
        files = [path.open("rb") for path in paths]
        try:
            said = metadata(place)
            assert await aiotus.upload_multiple(place.endpoint, files, said, config=config())
        finally:
            for file in files:
                file.close()

    asyncio.run(work())
    place.check()
