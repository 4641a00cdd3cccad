"""What `mnv2 predict`, `detect` and `segment` share: options, and results of photos that are written as they come."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from mnv2_keras.cli.console import print_skipped, with_progress
from mnv2_keras.cli.options import unique_stems

Photos = Annotated[list[Path], typer.Argument(help="Photos or folders of photos.", metavar="PHOTO...")]
Weights = Annotated[str, typer.Option(help="Archive, folder, checkpoint, Keras or .tflite file, or a name from `mnv2 list`.")]


def write_results(
    predictor, paths: list[Path], description: str, save: Callable[[object, str], dict], save_rows: Callable
) -> tuple[list[dict], dict[Path, Exception]]:
    """The results of photos as rows, and the photos that cannot be used, each with its error.

    Args:
        predictor: a `Detector` or `Segmenter`; it is closed.
        paths: the photos.
        description: of the progress bar.
        save: from a result and a file name without suffix, unique in this run, to what is added to the row; it writes the files
            of one photo.
        save_rows: called once with the rows, also after an error or Ctrl-C.
    """
    rows, errors = [], {}
    with predictor:
        results = with_progress(predictor.stream(paths, "skip"), len(paths), description, "photos")
        try:
            for path, stem, result in zip(paths, unique_stems(paths), results, strict=True):
                if result.error:
                    errors[path] = result.error
                else:
                    rows.append(result.as_dict() | save(result, stem))
        finally:
            if rows or errors:
                save_rows(rows)
    return rows, errors


def exit_with_skipped(errors, total: int | None = None) -> None:
    """Name the photos that were skipped, as `print_skipped`; the exit code is then 1, or 2 where these are all `total` photos."""
    print_skipped(errors)
    if errors:
        raise typer.Exit(2 if len(errors) == total else 1)
