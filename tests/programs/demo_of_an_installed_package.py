"""`mnv2 demo` of the package that is installed in the folder of the first argument."""

import sys

import mnv2_keras
from mnv2_keras.cli.main import main

folder = sys.argv.pop(1)
assert mnv2_keras.__file__.startswith(folder), mnv2_keras.__file__
sys.argv.append("demo")
main()
