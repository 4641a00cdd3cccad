"""The .tflite format: one parsed file, and the metadata in it. Neither TensorFlow nor Keras is needed."""

from mnv2_keras.tflite.file import TfliteFile, add_metadata, open_interpreter, read_metadata, read_tflite
from mnv2_keras.tflite.metadata import Metadata, labels_in_file

__all__ = ["Metadata", "TfliteFile", "add_metadata", "labels_in_file", "open_interpreter", "read_metadata", "read_tflite"]
