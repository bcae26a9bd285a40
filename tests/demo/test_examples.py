"""The examples in the docstrings of the demo and of the commands."""

import doctest
import importlib
import pkgutil

import pytest

from semantik_realtime import cli, demo

MODULES = [
    info.name
    for package in (cli, demo)
    for info in pkgutil.iter_modules(package.__path__, package.__name__ + ".")
]


@pytest.mark.parametrize("name", MODULES)
def test_the_examples_of_a_module_are_right(name: str) -> None:
    assert doctest.testmod(importlib.import_module(name)).failed == 0
