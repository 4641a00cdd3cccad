"""Every figure is drawn without a display, as PNG or SVG, and one policy holds where matplotlib is missing."""

import sys

import numpy as np
import pytest
from PIL import Image

from mnv2_keras import figures

ROWS = [
    {"epoch": 1, "loss": 2.0, "val_accuracy": 0.5, "learning_rate": 0.1},
    {"epoch": 2, "loss": 1.0, "val_accuracy": 0.75, "learning_rate": 0.05},
]
COUNTS = np.array([[3, 1, 0], [0, 2, 0], [0, 0, 0]])
DRAWINGS = {
    "epochs": lambda path: figures.draw_training(ROWS, path),
    "steps without evaluation": lambda path: figures.draw_training([{"step": 5, "loss": 1.0}], path),
    "counts": lambda path: figures.draw_confusion(COUNTS, ["a", "b", "c"], "images", path),
    "per cent": lambda path: figures.draw_confusion(COUNTS, ["a", "b", "c"], "pixels", path, percent=True),
    "many classes": lambda path: figures.draw_confusion(np.eye(31, dtype=int), list(map(str, range(31))), "", path),
    "layers": lambda path: figures.draw_layers({"Conv": 40.0, "Conv_1": 30.0}, "int8", path),
    "latencies": lambda path: figures.draw_latencies({"litert, 1 threads": (2.0, 3.0)}, path),
}


@pytest.mark.parametrize("draw", DRAWINGS.values(), ids=DRAWINGS)
def test_each_figure_is_drawn_into_a_new_folder(draw, tmp_path):
    with Image.open(draw(tmp_path / "new" / "figure.png")) as picture:
        assert min(picture.size) > 100
        assert np.asarray(picture.convert("L")).std() > 5


def test_the_ending_decides_the_format(tmp_path):
    content = figures.draw_training(ROWS, tmp_path / "figure.svg").read_bytes()
    assert content.startswith(b"<?xml")


def test_another_ending_is_refused():
    figures.check_figure("figure.svg")
    with pytest.raises(ValueError, match="drawn as .png or .svg; choose a name"):
        figures.check_figure("figure.jpg")


def test_without_matplotlib_a_wanted_figure_is_refused_and_an_extra_one_left_out(monkeypatch, caplog):
    assert figures.can_draw("curves.png")
    assert not caplog.records
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ValueError, match="figure.png needs matplotlib: pip install matplotlib"):
        figures.check_figure("figure.png")
    assert not figures.can_draw("curves.png")
    assert "curves.png is left out. To get it: pip install matplotlib" in caplog.text
