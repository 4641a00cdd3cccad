"""`mnv2` with the arguments of this program; fails if a library was imported that the command does not need, and names it."""

import sys

from mnv2_keras.cli.main import main

try:
    main()
except SystemExit as done:
    code = done.code
heavy = {"tensorflow", "keras", "pooch"}
if "pycocotools" not in sys.modules:  # which imports matplotlib
    heavy.add("matplotlib")
sys.exit(", ".join(heavy & set(sys.modules)) or code)
