"""What others have said is shown as it is: neither the terminal nor rich obeys it."""

from __future__ import annotations

import io
import json
from typing import Any

import click
import pytest
from click.testing import CliRunner
from rich.panel import Panel
from rich.text import Text

from backupd import cli
from backupd.control import Api, ApiFailed
from backupd.terminal import (
    Group,
    _Terminal,
    add_row,
    console,
    harmless,
    plain,
    progress_bar,
    red,
    say,
    short,
    show,
    table_of,
)
from tests.test_fetch_all import backup

EVIL = "\x1b]0;owned\x07\x1b[2J\x9b2J\x7f\r\b\u202e4pm\u2066\udcff"
"""Titles a window, clears it, goes back, turns the writing, and is no text besides."""

OBEYED = {chr(code) for code in (*range(32), *range(127, 160))} - {"\n"}
OBEYED |= {chr(code) for code in (*range(0x202A, 0x202F), *range(0x2066, 0x206A))}
OBEYED |= {chr(code) for code in range(0xD800, 0xE000)}


def test_every_character_that_is_obeyed_is_written_out() -> None:
    assert not OBEYED & set(harmless("".join(sorted(OBEYED)), lines=True))
    assert harmless("a\x1b[2J\u202eb\nc") == r"a\x1b[2J\u202eb\nc"
    assert harmless("a\x1b\n", lines=True) == "a\\x1b\n"


def test_what_is_harmless_stays() -> None:
    for text in ("plain", "\u00fc\u4e16\U0001f3a5 [2]", "\u05e9\u05dc\u05d5\u05dd", "C:\\x"):
        assert harmless(text) == text


@pytest.mark.parametrize("said", ["[red]x[/red]", "[/]", "[link=http://evil]x[/link]", ":bomb:"])
def test_what_others_have_said_is_no_markup(said: str) -> None:
    shown = io.StringIO()
    _Terminal(file=shown, force_terminal=True, color_system=None).print(
        plain(said), highlight=False
    )
    assert shown.getvalue() == f"{said}\n"


@pytest.mark.parametrize("what", ["words", "text", "panel", "table", "status"])
def test_no_way_to_the_terminal_is_open(what: str) -> None:
    """Also where it was forgotten that others have said it."""
    shown = io.StringIO()
    terminal = _Terminal(file=shown, force_terminal=True, color_system=None, width=200)
    if what == "table":
        table = table_of("id", "what")
        table.add_row(EVIL, Text(EVIL))
        table.title = EVIL
        terminal.print(table)
    elif what == "status":
        terminal.print(terminal.status(EVIL).renderable)
    else:
        terminal.print({"words": EVIL, "text": Text(EVIL), "panel": Panel(EVIL, title=EVIL)}[what])
    assert "owned" in shown.getvalue()
    assert not OBEYED & set(shown.getvalue())


def test_a_bars_words_are_shown_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = io.StringIO()
    bars = progress_bar()
    bars.add_task(EVIL, name=f"{EVIL}\n", total=1)
    _Terminal(file=shown, width=400).print(bars.get_renderable())
    assert shown.getvalue().count(r"\x1b]0;owned") == 2
    assert shown.getvalue().count(r"\u2066\udcff") == 2
    assert shown.getvalue().count("\n") == 1
    assert not OBEYED & set(shown.getvalue())


def test_a_name_beside_a_bar_is_short_as_it_is_shown() -> None:
    assert short("holiday.mp4") == "holiday.mp4"
    assert len(harmless(short("\x1b" * 20))) <= 32


def test_a_cell_is_as_wide_as_it_is_shown() -> None:
    """So that what is written out does not push its end out of the table."""
    table = table_of("id", "what")
    add_row(table, "[1]\n", red(f"{EVIL}\n"))
    shown = io.StringIO()
    _Terminal(file=shown, width=200).print(table)
    assert r"[1]\n" in shown.getvalue()
    assert r"\u2066\udcff\n" in shown.getvalue()
    assert len({len(line) for line in shown.getvalue().splitlines()}) == 1


def test_words_that_are_to_be_copied_are_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    """However long; they are no business of rich."""
    say(f"{EVIL}{'x' * 500}\n")
    shown = capsys.readouterr().out
    assert shown.count("\n") == 1
    assert not OBEYED & set(shown)


def test_an_error_is_one_line_whatever_a_server_says() -> None:
    @click.group(cls=Group)
    def main() -> None:
        pass

    @main.command()
    def meet() -> None:
        raise ApiFailed(f"{EVIL}\nbackupctl: all is well")

    done = CliRunner().invoke(main, ["meet"])
    assert done.exit_code == 1
    assert done.stderr.count("\n") == 1
    assert not OBEYED & set(done.stderr)


def test_json_is_the_same_text_without_what_is_obeyed(capsys: pytest.CaptureFixture[str]) -> None:
    """JSON itself leaves C1 and what turns the writing as they are."""
    show({"name": f"\u00fc{EVIL}\n"})
    shown = capsys.readouterr().out
    assert json.loads(shown) == {"name": f"\u00fc{EVIL}\n"}
    assert "\u00fc" in shown
    assert not OBEYED & set(shown)


class Peer:
    """Keeps one backup, and says of it what it likes."""

    def pages(self, *_: Any) -> Any:
        told = backup(1, "[/red]", f"{EVIL}.mp4", problem=f"[red]{EVIL}", peer=EVIL)
        return [told | {"backupId": "[link=x]1", "storedAt": "[/bold]"}]


def test_a_list_of_another_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Api, "at_peer", lambda name, environ: Peer())
    done = CliRunner().invoke(cli.main, ["list", "--at", "p"])
    assert done.exit_code == 0, done
    assert not OBEYED & set(done.output)
    for said in ("[link=x]1", "[/bold]", "[/red]", r"[red]\x1b]0;owned"):
        assert said in done.output


def test_the_console_is_one_that_shows_others_words() -> None:
    assert isinstance(console, _Terminal)
