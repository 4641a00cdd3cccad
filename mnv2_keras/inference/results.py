"""What a classifier said of many images, as files: JSON lines, CSV, Parquet."""

import csv
import io
import json
from collections.abc import Iterable
from pathlib import Path

from mnv2_keras.inference.classifier import Classification
from mnv2_keras.training.state import write_bytes

#: Kinds of result files, by suffix.
SUFFIXES = (".jsonl", ".csv", ".parquet")
#: Of CSV and Parquet: a row for each class of each photo, the best first, or one with the reason for a broken photo.
COLUMNS = ("photo", "rank", "index", "label", "score", "error")


def rows_of(results: Iterable[Classification]) -> list[tuple]:
    """Results as rows of `COLUMNS`."""
    rows: list[tuple] = []
    for each in results:
        if each.error is not None:
            rows.append((str(each.source), None, None, None, None, str(each.error)))
        rows += [(str(each.source), i, *found, None) for i, found in enumerate(each.predictions, 1)]
    return rows


def schema():
    """The Parquet file's columns and their types."""
    import pyarrow

    text, whole = pyarrow.string(), pyarrow.int32()
    return pyarrow.schema(list(zip(COLUMNS, (text, whole, whole, text, pyarrow.float32(), text), strict=True)))


def parquet_bytes(rows: list[tuple]) -> bytes:
    """A Parquet file of some rows."""
    import pyarrow
    from pyarrow import parquet

    columns = [[row[i] for row in rows] for i in range(len(COLUMNS))]
    sink = pyarrow.BufferOutputStream()
    parquet.write_table(
        pyarrow.Table.from_arrays(list(map(pyarrow.array, columns, schema().types)), schema=schema()), sink
    )
    return sink.getvalue().to_pybytes()


def write_results(results: Iterable[Classification], path: Path) -> None:
    """Results as JSON lines (a line a photo), CSV or Parquet (a row a class), all of them or no file.

    Raises:
        ValueError: a suffix that is none of `SUFFIXES`; Parquet without pyarrow.
    """
    check_suffix(path)
    if path.suffix == ".jsonl":
        write_bytes(path, "".join(json.dumps(each.as_dict()) + "\n" for each in results).encode())
    elif path.suffix == ".csv":
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows([COLUMNS, *rows_of(results)])
        write_bytes(path, text.getvalue().encode())
    else:
        try:
            content = parquet_bytes(rows_of(results))
        except ImportError as error:
            raise ValueError(
                f"{path} needs pyarrow: pip install 'mnv2-keras[parquet]', or write .csv or .jsonl."
            ) from error
        write_bytes(path, content)


def check_suffix(path: Path) -> None:
    """Whether results can be written under this name.

    Raises:
        ValueError: another suffix.
    """
    if path.suffix not in SUFFIXES:
        raise ValueError(f"{path}: results are written as {', '.join(SUFFIXES)}; choose a name that ends so.")
