"""The results of a classifier for many images as files: JSON lines, CSV, Parquet."""

import csv
import io
import itertools
import json
from collections.abc import Iterable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import BinaryIO

from mnv2_keras.atomic import replacing
from mnv2_keras.inference.classifier import Classification

#: Kinds of result files, by suffix.
SUFFIXES = (".jsonl", ".csv", ".parquet")
#: Columns of CSV and Parquet: a row for each class of each photo, the best first, or one with the reason for a broken photo.
COLUMNS = ("photo", "rank", "index", "label", "score", "error")
#: Rows of each group in a Parquet file.
_GROUP = 20_000


def rows_of(results: Iterable[Classification]) -> Iterator[tuple]:
    """Results as rows of `COLUMNS`."""
    for result in results:
        photo = _unicode(result.source)
        if result.error is not None:
            yield photo, None, None, None, None, _unicode(result.error)
        for rank, prediction in enumerate(result.predictions, 1):
            yield photo, rank, *prediction, None


def _unicode(value) -> str:
    r"""As text. A file's name may hold any bytes: those that are not UTF-8 become `\udce9`."""
    return str(value).encode("utf-8", "backslashreplace").decode()


def schema():
    """The Parquet file's columns and their types."""
    import pyarrow

    text, integer = pyarrow.string(), pyarrow.int32()
    return pyarrow.schema(list(zip(COLUMNS, (text, integer, integer, text, pyarrow.float32(), text), strict=True)))


def write_parquet(rows: Iterable[tuple], file: BinaryIO) -> None:
    """Rows as a Parquet file, a few thousand of them in memory at a time."""
    import pyarrow
    from pyarrow import parquet

    rows = iter(rows)
    with parquet.ParquetWriter(file, schema()) as writer:
        while part := list(itertools.islice(rows, _GROUP)):
            columns = map(pyarrow.array, zip(*part, strict=True), schema().types)
            writer.write_table(pyarrow.Table.from_arrays(list(columns), schema=schema()))


def write_results(results: Iterable[Classification], path: Path) -> None:
    """Write results as JSON lines (one for each photo), CSV or Parquet (a row for each class), as they come; atomically.

    Raises:
        ValueError: as in `check_suffix`.
    """
    check_suffix(path)
    with replacing(path) as file:
        if path.suffix == ".parquet":
            write_parquet(rows_of(results), file)
            return
        text = io.TextIOWrapper(file, "utf-8", newline="")
        if path.suffix == ".jsonl":
            text.writelines(json.dumps(result.as_dict()) + "\n" for result in results)
        else:
            csv.writer(text, lineterminator="\n").writerows(itertools.chain([COLUMNS], rows_of(results)))
        text.detach()


def check_suffix(path: Path) -> None:
    """Refuse a name under which results cannot be written, before the first photo is read.

    Raises:
        ValueError: a suffix that is not one of `SUFFIXES`; Parquet without pyarrow.
    """
    if path.suffix not in SUFFIXES:
        raise ValueError(f"{path}: results are written as {', '.join(SUFFIXES)}; choose a file name with one of these endings.")
    if path.suffix == ".parquet" and find_spec("pyarrow") is None:
        raise ValueError(f"{path} needs pyarrow: pip install 'mnv2-keras[parquet]', or write .csv or .jsonl.")
