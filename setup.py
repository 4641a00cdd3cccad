"""Everything is in setup.cfg, but for the folder `weights/`, which is installed inside the package."""

from setuptools import find_packages, setup

setup(packages=[*find_packages(include=["mnv2_keras*"]), "mnv2_keras.pretrained"], package_dir={"mnv2_keras.pretrained": "weights"})
