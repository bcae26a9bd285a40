"""The examples in the docstrings of the core and of other pure modules are true."""

import doctest
import importlib
import pkgutil

import pytest

from semantik_realtime import backoff, config, core, urls
from semantik_realtime.backends.redis import address, nodes
from semantik_realtime.web.wires import ends

MODULES = [info.name for info in pkgutil.iter_modules(core.__path__, core.__name__ + ".")]
OTHERS = [module.__name__ for module in (config, backoff, urls, ends, address, nodes)]


@pytest.mark.parametrize("name", [*MODULES, *OTHERS])
def test_the_examples_of_a_module_are_true(name):
    assert doctest.testmod(importlib.import_module(name)).failed == 0


def test_there_are_examples_to_check():
    attempted = [doctest.testmod(importlib.import_module(name)).attempted for name in MODULES]
    assert sum(attempted) > 60
