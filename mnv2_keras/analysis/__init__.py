"""Parameters, multiply-adds and activation memory of every network of the package, from its plan alone.

Nothing is built, and neither TensorFlow nor Keras is needed. `network` walks the plans, `cost_model` counts, `summary` is
Table 2 with figures, `profiler` counts as TensorFlow 1 does, `published` compares the paper's tables with computed
figures.
"""

from mnv2_keras.analysis.cost_model import Layer, Operation
from mnv2_keras.analysis.network import Analysis, analyze, analyze_deeplab, analyze_ssdlite
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
from mnv2_keras.analysis.summary import summary_table
