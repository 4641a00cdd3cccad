"""Results of a classifier as JSON lines, CSV and Parquet."""

import csv
import json
import sys

import pytest

from mnv2_keras.bundled import bundled_file
from mnv2_keras.inference.classifier import Classifier
from mnv2_keras.inference.results import COLUMNS, rows_of, write_results


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """Of three digits, and of two files that are not photos."""
    folder = tmp_path_factory.mktemp("photos")
    (folder / "broken.jpg").write_bytes(b"no photo")
    (folder / "empty.png").write_bytes(b"")
    photos = [bundled_file(f"digit_{digit}_1.png") for digit in (3, 5, 7)]
    with Classifier("digits") as classifier:
        return list(classifier.stream([*photos, folder], 3))


def test_csv_has_a_row_for_each_class(results, tmp_path):
    write_results(results, tmp_path / "out.csv")
    with (tmp_path / "out.csv").open(newline="") as file:
        header, *rows = csv.reader(file)
    assert tuple(header) == COLUMNS
    assert [tuple(row) for row in rows] == [tuple("" if x is None else str(x) for x in row) for row in rows_of(results)]
    assert len(rows) == 3 * 3 + 2


def test_json_lines_have_a_line_for_each_photo(results, tmp_path):
    write_results(results, tmp_path / "out.jsonl")
    lines = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [line["photo"] for line in lines] == [str(result.source) for result in results]
    assert sum("error" in line for line in lines) == 2


def test_parquet_without_pyarrow_says_what_to_install(results, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ValueError, match=r"needs pyarrow: pip install 'mnv2-keras\[parquet\]'"):
        write_results(results, tmp_path / "out.parquet")
