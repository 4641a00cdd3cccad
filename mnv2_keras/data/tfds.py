"""The one opener of data sets of TensorFlow Datasets (TFDS)."""

import os


def import_tfds(name: str):
    """The module `tensorflow_datasets`, to read the data set `name`.

    Raises:
        ValueError: it is not installed.
    """
    try:
        import tensorflow_datasets
    except ImportError as error:
        raise ValueError(
            f"{name} cannot be read: there is no such file or folder, and tensorflow_datasets is not installed "
            "(pip install 'mnv2-keras[data]')."
        ) from error
    return tensorflow_datasets


def open_tfds(name: str, data_dir: str | os.PathLike | None = None):
    """A prepared `tfds.core.DatasetBuilder`.

    Args:
        name: with a configuration or a version where there are several, such as "imagenette/320px-v2".
        data_dir: folder of the prepared data sets; None for that of TFDS.

    Raises:
        FileNotFoundError: there is no such data set.
        ValueError: TFDS is not installed, or cannot prepare the data set.
    """
    tfds = import_tfds(name)
    try:
        builder = tfds.builder(name, data_dir=data_dir)
    except (ValueError, AssertionError) as error:
        # For a data set that it has, TFDS lists the configurations or versions.
        reason = f" TFDS: {str(error).splitlines()[0]}" if str(error).startswith("Failed to construct") else ""
        raise FileNotFoundError(
            f"There is no data in {name}: no such folder, file or TFDS data set. Check the name.{reason}"
        ) from error
    try:
        builder.download_and_prepare()
    except Exception as error:  # no network, a full disk, archives to download by hand: the message says what to do
        raise ValueError(f"TFDS cannot prepare {name}: {' '.join(str(error).split())}") from error
    return builder
