"""Commands that need no TensorFlow do not import it."""

import sys

from mnv2_keras.cli import main

for arguments in (["--help"], ["list", "--json"], ["summary", "--json"]):
    main.command_line()(arguments, standalone_mode=False)
heavy = {"tensorflow", "keras", "tensorflow_datasets", "matplotlib"} & set(sys.modules)
assert not heavy, heavy
