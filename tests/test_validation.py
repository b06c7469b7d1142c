"""Validation images beside the test set, partitions that vary with the seed, and draws of one client alone."""

import dataclasses
import math

import numpy as np
import pytest
import torch

import fedlib as fl
from fedlib.schedule import Schedule


def network(norm="none"):
    return lambda: fl.models.slim_cnn((1, 8, 8), 10, norm=norm, width=2, hidden=8)


@pytest.fixture(scope="module")
def data():
    return fl.data.hold_out(fl.data.load("digits"), 0.2)


def split(data):
    return lambda seed: fl.partition.n_class(data.y_train, 5, 2, seed=seed)


OPTIONS = {"lr": [0.1], "local_steps": 2, "batch_size": 8, "device": "cpu", "precision": "float64"}


def trained(data, parts, rounds=3, make=None, **options):
    return fl.sweep(
        make or network(), data, parts, rounds=rounds, evaluate_every=1, progress=False, **OPTIONS | options
    )


def right(net, x, y):
    return (net(x.double() / 255).argmax(1) == y).double().mean().item()


def test_history_has_both_and_each_is_what_the_network_gets_right(data):
    (run,) = trained(data, split(data))
    last = run.history.iloc[-1]
    assert last["validation"] == pytest.approx(right(run.model(), data.x_val, data.y_val))
    assert last["accuracy"] == pytest.approx(right(run.model(), data.x_test, data.y_test))
    assert last["validation"] != last["accuracy"]
    (without,) = trained(dataclasses.replace(data, x_val=None, y_val=None), split(data))
    assert without.history["validation"].isna().all()
    assert without.history["accuracy"].tolist() == run.history["accuracy"].tolist()


def test_what_stays_at_home_is_judged_on_the_clients_own_validation_images(data):
    parts = fl.partition.n_class(data.y_train, 5, 2)
    tests, vals = (fl.partition.like(parts, data.y_train, y) for y in (data.y_test, data.y_val))
    (run,) = trained(
        data, parts, make=network("batch"), algorithm=fl.algorithms.fedbn(), test_parts=tests, val_parts=vals
    )
    own = [(run.model(k)(data.x_val[p].double() / 255).argmax(1) == data.y_val[p]).double() for k, p in enumerate(vals)]
    assert run.history["validation"].iloc[-1] == pytest.approx(torch.cat(own).mean().item())
    (everything,) = trained(data, parts, make=network("batch"), algorithm=fl.algorithms.fedbn())
    whole = [right(everything.model(k), data.x_val, data.y_val) for k in range(5)]
    assert everything.history["validation"].iloc[-1] == pytest.approx(np.mean(whole))


@pytest.mark.parametrize("engine", ["clients", "stacked"])
@pytest.mark.parametrize("method", [fl.algorithms.fedavg(), fl.algorithms.scaffold(), fl.algorithms.fedlc()])
def test_seeds_that_differ_in_the_partition_are_rows_of_one_cohort(data, engine, method):
    """Each run of the sweep is the run alone, on the partition of its seed, whose clients differ in size too."""

    def parts(seed):
        return fl.partition.dirichlet(data.y_train, 5, 0.3, seed=seed)

    def tests(seed):
        return fl.partition.like(parts(seed), data.y_train, data.y_test, seed=seed)

    options = {"engine": engine, "lr": [0.1, 0.2], "clients_per_round": 3}
    together = trained(data, parts, algorithm=method, seed=[3, 4], test_parts=tests, **options)
    for i, seed in enumerate((3, 4)):
        alone = trained(data, parts(seed), algorithm=method, seed=[seed], test_parts=tests(seed), **options)
        for one, other in zip(together[i::2], alone, strict=True):
            torch.testing.assert_close(one.weights.w, other.weights.w, rtol=0, atol=1e-12)
            assert one.history["client_accuracy"].tolist() == pytest.approx(other.history["client_accuracy"].tolist())
            assert (
                one.config["parts"] == other.config["parts"] and one.config["test_parts"] == other.config["test_parts"]
            )
    assert together[0].config["parts"] != together[1].config["parts"]


def test_a_partition_of_another_seed_is_another_checkpoint(data, tmp_path):
    file = tmp_path / "run.pt"
    trained(data, split(data), rounds=1, seed=[0, 1], checkpoint=file)
    goes_on = trained(data, split(data), rounds=2, seed=[0, 1], checkpoint=file)
    assert [len(run.history) for run in goes_on] == [2, 2]
    fixed = split(data)(0)
    with pytest.raises(ValueError, match="belongs to another configuration .parts: "):
        trained(data, fixed, rounds=2, seed=[0, 1], checkpoint=file)
    other = dataclasses.replace(data, x_val=data.x_val.flip(0), y_val=data.y_val.flip(0))
    with pytest.raises(ValueError, match="belongs to another configuration .data: "):
        trained(other, split(data), rounds=2, seed=[0, 1], checkpoint=file)


def test_what_cannot_be_is_refused(data):
    with pytest.raises(
        ValueError, match=r"parts must give the same number of clients for every seed, got \{1: 2, 2: 3"
    ):
        trained(data, lambda seed: fl.partition.iid(data.y_train, 1 + seed), seed=[1, 2])
    with pytest.raises(ValueError, match="parts.0. must hold positions from 0 to"):
        trained(data, lambda seed: [[10**6]])
    with pytest.raises(ValueError, match="val_parts must hold one index tensor per client, got 1 for 5 clients"):
        trained(data, split(data), val_parts=[[0]])
    bare = fl.data.load("digits")
    with pytest.raises(ValueError, match="val_parts needs validation images, and 'digits' has none; see fl.data.hold"):
        trained(bare, fl.partition.iid(bare.y_train, 5), val_parts=[[0]] * 5)


def test_outputs_that_overflow_on_validation_images_end_a_run(data):
    class Overflows(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = torch.nn.Linear(64, 10)

        def forward(self, x):
            scale = torch.where(x.amax((1, 2, 3)) > 2, x.new_tensor(1e200), 1.0)[:, None]  # never in training
            return self.fc(x.flatten(1)) * scale * scale

    bright = dataclasses.replace(data, mean=(0.0,), std=(0.3,))
    dark = dataclasses.replace(bright, x_train=bright.x_train // 4, x_test=bright.x_test // 4)
    with pytest.warns(UserWarning, match="diverged in round 1: the outputs of the network not finite"):
        (run,) = trained(dark, split(data), rounds=1, make=Overflows, normalise=True)
    assert math.isnan(run.accuracy)


# --- draws ---


def test_a_client_draws_alone_what_it_draws_among_others():
    parts = [np.arange(7), np.arange(7, 20), np.arange(20, 23), np.arange(23, 60)]
    view = fl.algorithms.simclr().objective.view
    for work in ({"local_steps": 3}, {"local_epochs": 2}):
        options = {"batch_size": 4, "augment": "flip+crop", "view": view, "keys": True, **work}
        clients, batches = Schedule(parts, 3, **options).draw([5, 6], 2)
        for s, seed in enumerate((5, 6)):
            for i, k in enumerate(clients[s].tolist()):
                row = 3 * s + i
                alone = Schedule(parts, 4, **options).turn(seed, 2, k)
                steps = [sizes[row] for sizes in batches.size if sizes[row]]
                assert steps == alone.size and batches.key[row].item() == alone.key
                T, B = alone.index.shape
                for name in ("index", "shift", "flip", "view"):
                    np.testing.assert_array_equal(getattr(batches, name)[row, :T, :B], getattr(alone, name), name)
                assert (batches.index[row, T:] == 0).all() and (batches.index[row, :, B:] == 0).all()


def test_no_stream_is_another_one():
    """NumPy pads a list of seeds with zeros: [seed, t, 0] is [seed, t], which is why clients count from 1."""
    streams = [[seed, t] for seed in range(3) for t in range(3)]
    streams += [[seed, t, 1 + k] for seed in range(3) for t in range(3) for k in range(3)]
    streams += [[seed, t, 1 + k, what] for seed in range(3) for t in range(3) for k in range(3) for what in (1, 2, 3)]
    streams += [[seed, t, 0, 1] for seed in range(3) for t in range(3)]
    first = [tuple(np.random.default_rng(stream).integers(1 << 62, size=2)) for stream in streams]
    assert len({*first}) == len(streams)
    assert np.random.default_rng([1, 2, 0]).integers(1 << 62) == np.random.default_rng([1, 2]).integers(1 << 62)
