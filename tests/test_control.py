"""What the command line asks with: a URL that can be called, and a token that nobody is shown."""

from __future__ import annotations

import traceback
from http.client import HTTPConnection
from io import BytesIO
from typing import Any

import pytest
from click.testing import CliRunner

from backupd import control
from backupd.cli import main
from backupd.control import Api, ApiFailed, find_token, find_url, part

SECRET = "s" * 43
NOBODY = "http://127.0.0.1:9"


@pytest.mark.parametrize("end", ["\r", "\n", "\r\n", " \n", "\t"])
def test_the_end_of_a_line_is_no_part_of_a_token(end: str) -> None:
    """It comes with it out of a file, and http.client would quote both in what it says."""
    assert Api(NOBODY, SECRET + end)._token == Api(NOBODY, end + SECRET)._token == SECRET
    with pytest.raises(ApiFailed, match="does not answer"):
        Api(NOBODY, SECRET + end).call("GET", "/")


@pytest.mark.parametrize("more", ["\u2026", "\xff", "\r\nx: y", " x", "\x1b", "\udcff"])
def test_what_can_be_no_token_is_refused_without_showing_it(more: str) -> None:
    with pytest.raises(ApiFailed) as caught:
        Api(NOBODY, SECRET + more + SECRET)
    assert SECRET not in "".join(traceback.format_exception(caught.value))
    done = CliRunner().invoke(
        main, ["--url", NOBODY, "status"], env={"BACKUPD_TOKEN": SECRET + more + SECRET}
    )
    assert (done.exit_code, type(done.exception)) == (1, SystemExit)
    assert "The token has characters" in done.output
    assert SECRET not in done.output


def test_nothing_but_space_is_no_token() -> None:
    """The file under the root is looked at then."""
    assert find_token(" ", {"BACKUPD_TOKEN": "other"}) == "other"
    assert find_token("", {"BACKUPD_TOKEN": "\r\n", "BACKUPD_ROOT": "/nowhere"}) is None


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("http://a:99999", "Port out of range"),
        ("http://a:b", "Port could not be cast to integer"),
        ("http://[::1", "Invalid IPv6 URL"),
        ("http://a..b", "its host is no name"),
        (f"http://{'a' * 64}", "its host is no name"),
        ("http://", "it is not http://HOST:PORT"),
        ("http://a\x01b", "it is not http://HOST:PORT"),
        ("localhost:3000", "it is not http://HOST:PORT"),
        ("http://a/ b", "its path has characters"),
        ("http://a/\u00fc", "its path has characters"),
    ],
)
def test_what_is_no_url_is_told_in_one_line(url: str, why: str) -> None:
    """With what is wrong with it, and what one looks like."""
    done = CliRunner().invoke(main, ["status"], env={"BACKUPD_URL": url})
    assert (done.exit_code, type(done.exception)) == (1, SystemExit)
    assert done.output.count("\n") == 1
    assert f"is no URL of a server ({why}" in done.output
    assert "try http://localhost:3000" in done.output


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("http://[::1]:9/", "http://[::1]:9"),
        ("https://b.example/below/", "https://b.example/below"),
        ("http://m\u00fcller.example", "http://m\u00fcller.example"),
        ("http://a:1\r\n", "http://a:1"),
    ],
)
def test_urls_that_can_be_called(url: str, shown: str) -> None:
    assert Api(url, None).url == shown


@pytest.mark.parametrize("port", ["0", "3001", "65536", "9" * 100])
def test_wherever_the_daemon_listens_there_is_a_url(port: str) -> None:
    """Commands that do not call it, such as `serve` and `doctor`, go on by what they find."""
    Api(find_url({"BACKUPD_CONFIG": "/dev/null", "BACKUPD_LISTEN": f"tcp:{port}"}), None)


def test_an_id_is_one_part_of_a_path_whatever_its_bytes() -> None:
    """On a command line, or from a server, it may have bytes that are no text."""
    assert part("../a?b\udcff") == "..%2Fa%3Fb%3F"
    with pytest.raises(ApiFailed, match="does not answer"):
        Api(NOBODY, None).call("GET", "/", query={"peer": "\udcff"})


# -- what comes back ------------------------------------------------------------------------------


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Says what every request is answered from now on."""

    def say(body: bytes, status: int = 200, missing: int = 0) -> Api:
        def answer(self: HTTPConnection) -> Any:
            response: Any = BytesIO(body)
            response.status, response.reason, response.length = status, "reason", missing
            return response

        monkeypatch.setattr(HTTPConnection, "request", lambda *_: None)
        monkeypatch.setattr(HTTPConnection, "getresponse", answer)
        return Api(NOBODY, None)

    return say


@pytest.mark.parametrize("body", [b"[" * 200_000, b"{", b"\xff", b"9" * 5000])
def test_what_is_no_json_is_told(answers: Any, body: bytes) -> None:
    """Also what is so deep that nobody can read it."""
    with pytest.raises(ApiFailed, match="what is no JSON"):
        answers(body).call("GET", "/")
    with pytest.raises(ApiFailed, match="answered 500 reason"):
        answers(body, 500).call("GET", "/")


@pytest.mark.parametrize("body", [b"", b"null", b'{"success": true}'])
def test_an_answer_that_is_cut_is_none(answers: Any, body: bytes) -> None:
    """What is missing may be that it did not work."""
    with pytest.raises(ApiFailed, match="9 more expected"):
        answers(body, missing=9).call("GET", "/")


@pytest.mark.parametrize("body", [b"{}", b"[]", b"null", b'{"backups": 5, "next": null}'])
def test_what_is_no_list_is_told(answers: Any, body: bytes) -> None:
    with pytest.raises(ApiFailed, match="no list of backups"):
        list(answers(body).pages("/", "backups", {}))


def test_an_answer_without_end_is_not_waited_for(
    answers: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(control, "LONGEST", 10)
    assert answers(b"1" * 10).call("GET", "/") == 1111111111
    with pytest.raises(ApiFailed, match="more than 10 bytes"):
        answers(b"1" * 11).call("GET", "/")
