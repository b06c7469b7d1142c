"""The examples in fedlib's docstrings give what they say."""

import doctest
import pkgutil

import pytest

import fedlib

MODULES = ["fedlib", *sorted(module.name for module in pkgutil.walk_packages(fedlib.__path__, "fedlib."))]


@pytest.mark.parametrize("name", MODULES)
def test_examples_give_what_they_say(name):
    module = pytest.importorskip(name, exc_type=ModuleNotFoundError)  # some need an optional package
    result = doctest.testmod(module, optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    assert result.failed == 0
    assert result.attempted or name != "fedlib"  # the first lines that a reader tries
