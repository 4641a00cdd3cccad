"""Take a saved segmenter's backbone in a process that has imported nothing else: `base_of_a_segmenter.py SEGMENTER.keras`."""

import sys

from mnv2_keras import build_mobilenetv2

options = {"final_endpoint": "layer_18", "min_depth": 1, "divisible_by": 1}
build_mobilenetv2(0.1, (32, 32, 3), include_top=False, weights=sys.argv[1], **options)
