"""`mnv2` with the arguments given; fails if TensorFlow or Keras was imported, and names it."""

import sys

from mnv2_keras.cli.main import command_line

command_line()(sys.argv[1:], standalone_mode=False)
sys.exit(", ".join({"tensorflow", "keras"} & set(sys.modules)) or 0)
