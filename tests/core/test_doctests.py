"""The examples in the docstrings of the core, the settings and the back-off are true."""

import doctest
import importlib
import pkgutil

import pytest

from semantik_realtime import backoff, config, core, urls

MODULES = [info.name for info in pkgutil.iter_modules(core.__path__, core.__name__ + ".")]


@pytest.mark.parametrize("name", [*MODULES, config.__name__, backoff.__name__, urls.__name__])
def test_the_examples_of_a_module_are_true(name):
    assert doctest.testmod(importlib.import_module(name)).failed == 0


def test_there_are_examples_to_check():
    attempted = [doctest.testmod(importlib.import_module(name)).attempted for name in MODULES]
    assert sum(attempted) > 60
