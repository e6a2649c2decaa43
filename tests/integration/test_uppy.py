"""Uppy in a real browser, on a page of another origin than the daemon's."""

from __future__ import annotations

import contextlib
import functools
import http.server
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest
from playwright.sync_api import Browser, expect, sync_playwright

from tests.integration.clients import install
from tests.integration.cutter import Cutter
from tests.integration.daemons import Daemon, clean_environment, run
from tests.integration.places import SIZE, Place
from tests.integration.plain import PlainSender
from tests.integration.proxies import needs

PAGE = """<!doctype html><meta charset="utf-8"><title>Studio</title>
<input type="file" id="file"><output id="result"></output><script src="page.js"></script>"""
QUIET = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def studio(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The web server of the page; its origin."""
    clients = install(tmp_path_factory.mktemp("npm"))
    site = tmp_path_factory.mktemp("site")
    bundle = ["npx", "esbuild", "page.mjs", "--bundle", f"--outfile={site / 'page.js'}"]
    done = run([*bundle, "--log-level=warning"], clean_environment(), cwd=clients)
    assert done.code == 0, done.err
    (site / "index.html").write_text(PAGE)
    handler = functools.partial(Quiet, directory=str(site))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, args=[0.05], daemon=True).start()
    yield f"http://localhost:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    needs("chromium")
    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=QUIET)
        yield running
        running.close()


@pytest.fixture
def open_to_studio(tmp_path: Path, cutter: Cutter, studio: str) -> Iterator[Daemon]:
    """A daemon whose settings list the page's origin."""
    with Daemon(tmp_path, host=cutter.host, loop_interval="0.2", allowed_origins=studio) as running:
        cutter.target = running.port
        yield running


def upload(browser: Browser, studio: str, endpoint: str, file: Path, chunk: int = 0) -> Any:
    """Choose the file on the page; what Uppy made of it."""
    query = urlencode({"endpoint": endpoint, "video": "7", "chunk": chunk})
    context = browser.new_context()
    with contextlib.closing(context):
        page = context.new_page()
        page.goto(f"{studio}/?{query}")
        page.set_input_files("#file", file)
        result = page.locator("#result")
        expect(result).to_contain_text("urls", timeout=60_000)
        return json.loads(result.inner_text())


@pytest.mark.parametrize("where", ["link", "direct"])
@pytest.mark.parametrize("chunk", [0, 2 * 1024**2])
def test_a_page_of_a_listed_origin_uploads(
    browser: Browser,
    studio: str,
    open_to_studio: Daemon,
    cutter: Cutter,
    sender: PlainSender,
    video_file: Path,
    where: str,
    chunk: int,
) -> None:
    """Through a connection that is cut on the way; the page reads Location and offsets."""
    place = Place(open_to_studio, cutter.url, sender if where == "link" else None, video_file)
    cutter.cut_at(cutter.sent + SIZE // 3, cutter.sent + SIZE // 2)
    result = upload(browser, studio, place.endpoint, video_file, chunk)
    assert result["failed"] == 0
    assert result["urls"][0].startswith(place.endpoint)
    assert cutter.cuts == 2
    place.check()


@pytest.mark.parametrize("where", ["link", "direct"])
def test_a_page_of_another_origin_uploads_nothing(
    browser: Browser,
    studio: str,
    behind: Daemon,
    cutter: Cutter,
    sender: PlainSender,
    video_file: Path,
    where: str,
) -> None:
    """The browser is not told that it may, and what it sends all the same is refused."""
    place = Place(behind, cutter.url, sender if where == "link" else None, video_file)
    result = upload(browser, studio, place.endpoint, video_file)
    assert result == {"urls": [], "failed": 1}
    assert behind.backups() == []
    assert behind.incoming == []
    assert [one["receivedBytes"] for one in behind.requests() if one["receivedBytes"]] == []


def test_what_a_browser_asks_before(open_to_studio: Daemon, studio: str) -> None:
    """A preflight is answered without a token; only listed origins are named."""
    asked = {
        "Access-Control-Request-Method": "PATCH",
        "Access-Control-Request-Headers": "tus-resumable,upload-offset,content-type",
    }
    listed = open_to_studio.call("OPTIONS", "/api/v1/uploads", headers=asked | {"Origin": studio})
    assert listed.status in (200, 204)
    assert listed.headers["Access-Control-Allow-Origin"] == studio
    assert "Origin" in listed.headers["Vary"]
    methods = {one.strip() for one in listed.headers["Access-Control-Allow-Methods"].split(",")}
    assert {"POST", "HEAD", "PATCH", "DELETE"} <= methods
    allowed = listed.headers["Access-Control-Allow-Headers"].lower()
    for name in (
        "tus-resumable",
        "upload-length",
        "upload-offset",
        "upload-metadata",
        "upload-concat",
    ):
        assert name in allowed
    exposed = listed.headers["Access-Control-Expose-Headers"].lower()
    for name in ("location", "upload-offset", "upload-length", "tus-resumable", "upload-expires"):
        assert name in exposed
    evil = {"Origin": "http://evil.example"}
    other = open_to_studio.call("OPTIONS", "/api/v1/uploads", headers=asked | evil)
    assert "Access-Control-Allow-Origin" not in other.headers
