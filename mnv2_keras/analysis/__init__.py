"""Parameters, multiply-adds and activation memory of every network of the package, from its plan alone.

Nothing is built, and neither TensorFlow nor Keras is needed. `network` has the classifier and the base, `ssdlite` the
detector, `deeplab` the segmenter, `published` the tables of the paper beside computed figures.
"""

from mnv2_keras.analysis.cost_model import Layer, Operation
from mnv2_keras.analysis.deeplab import analyze_deeplab
from mnv2_keras.analysis.network import Analysis, analyze, summary_table
from mnv2_keras.analysis.profiler import profiled_multiply_adds, profiled_operations
from mnv2_keras.analysis.published import (
    Comparison,
    PublishedFigures,
    published_figures,
    table_3,
    table_5,
    table_6_row,
    table_7_rows,
)
from mnv2_keras.analysis.ssdlite import analyze_ssdlite

__all__ = [
    "Analysis",
    "Comparison",
    "Layer",
    "Operation",
    "PublishedFigures",
    "analyze",
    "analyze_deeplab",
    "analyze_ssdlite",
    "profiled_multiply_adds",
    "profiled_operations",
    "published_figures",
    "summary_table",
    "table_3",
    "table_5",
    "table_6_row",
    "table_7_rows",
]
