import os

if "PYTEST_XDIST_WORKER" in os.environ:
    # Files run side by side: one thread for each operation, set before torch is imported, in notebooks' kernels too.
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest

from fedlib import data


def pytest_collection_modifyitems(items):
    """Begin with the files that take minutes, so that none of them is left alone on one core at the end."""
    items.sort(key=lambda item: item.path.suffix != ".ipynb" and item.path.name != "test_colab.py")


@pytest.fixture
def needs_data():
    """Function (name, *files) -> folder of data sets; skips the test unless all files are below that folder."""

    def folder(name, *files):
        root = data.data_root()
        missing = [file for file in files if not (root / file).exists()]
        if missing:
            pytest.skip(f"{name} is not here: no {', '.join(missing)} in {root}")
        return root

    return folder
