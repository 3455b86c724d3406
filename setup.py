"""Builds wheels in a temporary folder, so that no file of an earlier build gets into one, and none is left behind."""

import tempfile

from setuptools import setup

with tempfile.TemporaryDirectory() as folder:
    setup(options={"build": {"build_base": folder}})
