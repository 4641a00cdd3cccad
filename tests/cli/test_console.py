"""What commands print: results on stdout, progress and skipped images on stderr."""

import io
import json

import pytest
from rich.console import Console

from mnv2_keras.cli import console


@pytest.fixture
def stderr(monkeypatch):
    """What was printed on stderr."""
    file = io.StringIO()
    monkeypatch.setattr(console, "err", Console(file=file, width=80, emoji=False, markup=False))
    return file


def test_skipped_images_are_named_with_their_reason(stderr):
    console.print_skipped({"[a].jpg": "[a].jpg is cut off", ":b:.jpg": "no image"})
    assert stderr.getvalue() == "skipped: [a].jpg is cut off\nskipped: :b:.jpg: no image\n"


def test_skipped_images_above_the_limit_are_counted(stderr):
    console.print_skipped((f"{i}.jpg" for i in range(5)), most=2)
    assert stderr.getvalue() == "skipped: 0.jpg\nskipped: 1.jpg\nskipped: 3 more\n"


def test_a_progress_bar_yields_every_item_and_prints_nothing_into_a_file(stderr):
    assert list(console.with_progress("abc", 3, "reading", "letters")) == ["a", "b", "c"]
    assert "abc" not in stderr.getvalue()


def test_a_progress_bar_shows_description_steps_and_detail(monkeypatch):
    file = io.StringIO()
    terminal = Console(file=file, width=100, force_terminal=True, emoji=False, markup=False)
    monkeypatch.setattr(console, "err", terminal)
    with console.progress_bar("", unit="photos") as bar:
        bar.update(1, 4, description="[features]")
        bar.update(2, detail="loss 0.5")
    text = file.getvalue()
    assert "[features]" in text
    assert "2/4" in text
    assert "loss 0.5" in text


def test_json_is_printed_unchanged(capsys):
    console.print_json({"name": "[red]:cat:"})
    assert json.loads(capsys.readouterr().out) == {"name": "[red]:cat:"}
