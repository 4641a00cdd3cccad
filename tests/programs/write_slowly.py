"""`mnv2` with a command that is still writing a file, the first argument, when it is terminated."""

import sys
import time

from mnv2_keras.atomic import replacing
from mnv2_keras.cli import main


def command():
    with replacing(sys.argv[1]) as file:
        file.write(b"half")
        print("writing", flush=True)
        time.sleep(60)


main.command_line = lambda names: command
main.main()
