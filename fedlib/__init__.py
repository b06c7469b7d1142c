"""Federated learning, layer by layer: models, partitions and algorithms for a cohort of clients on one machine.

Each module answers one question::

    data         what clients learn from          domains      images of several kinds
    texts        windows of characters            partition    who holds what
    norms        what happens inside a layer      models       what is trained
    construct    weights without training
    cohort       many clients as one matrix       algorithms   how methods differ
    simulate     the rounds                       measure      what we look at
    claims       what a paper promised            plots        how it looks
    explore      how a reader plays               chapter      what every chapter does
    tuning       every method at its best          parallel     trainings side by side

    >>> import fedlib as fl
    >>> data = fl.data.load("digits")
    >>> parts = fl.partition.n_class(data.y_train, clients=10, n=1)
    >>> run = fl.run(lambda: fl.models.slim_cnn(data.shape, 10, norm="layer"), data, parts, fl.algorithms.fedavg(),
    ...              rounds=10, lr=0.03, local_steps=10)
    >>> run.accuracy > 0.3
    True
"""

from fedlib import (
    algorithms,
    chapter,
    claims,
    cohort,
    construct,
    data,
    domains,
    measure,
    models,
    norms,
    parallel,
    partition,
    plots,
    texts,
    tuning,
)
from fedlib.explore import explore, explore_runs
from fedlib.parallel import side_by_side
from fedlib.simulate import Run, run, sweep

__all__ = [
    "Run",
    "algorithms",
    "chapter",
    "claims",
    "cohort",
    "construct",
    "data",
    "domains",
    "explore",
    "explore_runs",
    "measure",
    "models",
    "norms",
    "parallel",
    "partition",
    "plots",
    "run",
    "side_by_side",
    "sweep",
    "texts",
    "tuning",
]
