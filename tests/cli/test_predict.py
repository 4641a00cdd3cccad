"""`mnv2 predict`: which options go together, and what it prints."""

import sys

import pytest
from command_line import mnv2

from mnv2_keras.bundled import bundled_file


def test_without_ray_it_says_what_to_install(monkeypatch, capsys, tmp_path):
    photos = bundled_file("digit_3_1.png")
    monkeypatch.setitem(sys.modules, "ray", None)
    code, _, err = mnv2(capsys, monkeypatch, "predict", photos, "--engine-cluster", "ray", "-o", tmp_path / "a.parquet")
    assert code == 2
    assert "A cluster needs Ray: pip install 'mnv2-keras[ray]'" in " ".join(err.split())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--engine-cluster", "spark", "-o", "a.parquet"], "--engine-cluster is 'spark': expected ray"),
        (["--engine-cluster", "ray"], "add -o found.parquet"),
        (["--engine-cluster", "ray", "-o", "a.csv"], "a.csv: a cluster writes Parquet"),
        (["--engine-cluster", "ray", "-o", "a.parquet", "--threads", "2"], "--threads is for a single process"),
        (["--engine-cluster", "ray", "-o", "a.parquet", "--strict"], "--strict is for a single process"),
        (["--workers", "2"], "--workers is for a cluster"),
        (["-o", "a.txt"], "results are written as .jsonl, .csv, .parquet"),
    ],
)
def test_options_that_do_not_go_together(monkeypatch, capsys, options, message):
    code, _, err = mnv2(capsys, monkeypatch, "predict", "photos", *options)
    assert code == 2
    assert message in " ".join(err.split())


def test_the_command_line_knows_the_digits(capsys, monkeypatch):
    code, out, _ = mnv2(
        capsys, monkeypatch, "predict", bundled_file("digit_3_1.png"), "--weights", "digits", "--top", "1"
    )
    assert code == 0
    assert "│ 3 " in out
