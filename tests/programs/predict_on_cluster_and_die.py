"""Classifies the photos of a folder on two workers of Ray, and kills itself after 30 of them."""

import os
import signal
import sys

from mnv2_keras.inference.cluster import predict_on_cluster


def die(done, total):
    if done >= 30:
        os.kill(os.getpid(), signal.SIGKILL)


predict_on_cluster(*sys.argv[1:], "digits", top=3, workers=2, part=10, progress=die)
