"""Export a network to the file that the argument names."""

import sys

from mnv2_keras import build_mobilenetv2, export_litert

export_litert(build_mobilenetv2(0.1, (96, 96, 3)), sys.argv[1])
