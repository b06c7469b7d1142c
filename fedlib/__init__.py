"""Federated learning, layer by layer: models, partitions and algorithms for a cohort of clients on one machine.

Each module answers one question::

    checks       what arguments must be           files        files that are whole or not there
    workers      the cores of a CPU               data         what clients learn from
    domains      images of several kinds          texts        windows of characters
    partition    who holds what                   norms        what happens inside a layer
    models       what is trained                  cohort       many clients as one matrix
    messages     what travels                     algorithms   how methods differ
    schedule     who trains in a round, on what   client       one side of a round
    server       the other side                   checkpoint   a federation on disk
    simulate     the rounds                       measure      what we look at
    parallel     trainings side by side           experiment   a table of runs, each tuned
    accelerator  what is asked of a GPU

The book needs more, in ``fedlib.book``, which ``pip install "fedlib[book]"`` brings the packages for. It is loaded on
first use, so that ``import fedlib`` stays light::

    bars         what a claim must reach          card         where a number comes from
    construct    weights without training         claims       what a paper promised
    record       rows that are not run again      run          experiments without a notebook
    compare      what has moved
    plots        how it looks                     explore      how a reader plays
    chapter      what every chapter does         pictures     what measures nothing
    live         what lives on the page

    >>> import fedlib as fl
    >>> data = fl.data.load("digits")
    >>> parts = fl.partition.n_class(data.y_train, clients=10, n=1)
    >>> run = fl.run(lambda: fl.models.slim_cnn(data.shape, 10, norm="layer"), data, parts, fl.algorithms.fedavg(),
    ...              rounds=10, lr=0.03, local_steps=10)
    >>> run.accuracy > 0.3
    True
"""

from importlib import import_module

from fedlib import (
    algorithms,
    client,
    cohort,
    data,
    domains,
    experiment,
    measure,
    messages,
    models,
    norms,
    parallel,
    partition,
    schedule,
    server,
    texts,
    workers,
)
from fedlib.experiment import Plan
from fedlib.parallel import side_by_side
from fedlib.simulate import Run, Simulation, run, sweep

__all__ = [
    "Plan",
    "Run",
    "Simulation",
    "algorithms",
    "client",
    "cohort",
    "data",
    "domains",
    "experiment",
    "measure",
    "messages",
    "models",
    "norms",
    "parallel",
    "partition",
    "run",
    "schedule",
    "server",
    "side_by_side",
    "sweep",
    "texts",
    "workers",
]

_MODULES = {"chapter", "claims", "construct", "pictures", "plots"}  # of fedlib.book
_FUNCTIONS = {"explore": "explore", "explore_runs": "explore", "live": "live", "ask": "live"}  # and their modules


def __getattr__(name: str):
    """Load a part of the book when it is first asked for."""
    if name not in _MODULES | _FUNCTIONS.keys():
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        module = import_module(f"fedlib.book.{_FUNCTIONS.get(name, name)}")
    except ModuleNotFoundError as error:
        raise ImportError(f'fl.{name} belongs to the book and needs {error.name}: install "fedlib[book]"') from error
    return getattr(module, name) if name in _FUNCTIONS else module


def __dir__() -> list[str]:
    return sorted(globals().keys() | _MODULES | _FUNCTIONS.keys())
