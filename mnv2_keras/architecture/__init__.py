"""The networks of the paper as data, with the standard library only: every layer with its name and sizes.

`backbone` holds Table 2 and its plan, `detector` and `segmenter` the plans of the networks on it. The builders
(`networks`), the counts (`analysis`) and the variables' names (`convert.names`) read these plans.
"""

from mnv2_keras.architecture.backbone import (
    EXPANSION_DIVISOR,
    TABLE_2,
    Block,
    Convolution,
    Endpoint,
    Plan,
    Row,
    classifier_logits,
    make_divisible,
    make_plan,
    split_divisible,
)
from mnv2_keras.architecture.detector import ANCHOR_SHAPES, DetectorPlan, Predictor, make_detector_plan
from mnv2_keras.architecture.segmenter import ASPP_RATES, Aspp, Decoder, SegmenterPlan, make_segmenter_plan
