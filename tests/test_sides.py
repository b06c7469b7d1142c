"""The two sides of a round: clients as objects of their own, between which only serialised messages travel."""

import io
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

import fedlib as fl
from fedlib import algorithms as A
from fedlib.client import Clients
from fedlib.cohort import Batches, Layout, Local, Stages, Trainer
from fedlib.data import Data, from_arrays
from fedlib.messages import Down, Totals, Up
from fedlib.schedule import Schedule
from fedlib.server import Server

SIZES, ROUNDS, SEEDS = [7, 17, 12, 24, 9], 4, [3, 4]
LR, DECAY, CLIP = 0.1, 0.05, 0.7


@pytest.fixture(scope="module")
def data() -> Data:
    rng = np.random.default_rng(0)
    n = sum(SIZES)
    images, labels = rng.integers(0, 256, (n, 6, 6, 1), dtype=np.uint8), rng.integers(0, 4, n)
    return from_arrays("noise", images, labels, images[:9], labels[:9])


@pytest.fixture(scope="module")
def parts(data: Data) -> list[torch.Tensor]:
    return list(torch.from_numpy(np.random.default_rng(1).permutation(sum(SIZES))).split(SIZES))


def convolutional() -> nn.Module:
    return fl.models.slim_cnn((1, 6, 6), 4, norm="batch", width=3, hidden=5)


def transformer() -> nn.Module:
    return fl.models.vit_encoder((1, 6, 6), 4, patch=3, width=4, depth=3, heads=2, hidden=6)


def packed(record: Down | Up | Totals) -> bytes:
    """As bytes, which hold tensors with names and numbers, and nothing that could be executed."""
    file = io.BytesIO()
    torch.save(vars(record), file)
    return file.getvalue()


def unpacked(kind: type, sent: bytes) -> Down | Up | Totals:
    return kind(**torch.load(io.BytesIO(sent), weights_only=True))


class Machine:
    """One client, with its own images, network and memory; it knows the method, and nothing of the others."""

    def __init__(self, make, data: Data, part: torch.Tensor, algorithm: A.Algorithm):
        self.places = part  # which images of the whole set it has: only to read the schedule of the whole federation
        images, labels = data.x_train[part].clone(), data.y_train[part].clone()
        nets = []
        for seed in SEEDS:
            torch.manual_seed(seed)
            nets.append(make().double())
        layout = Layout(nets[0])
        w, buffers = (torch.stack(rows) for rows in zip(*(layout.read(net) for net in nets), strict=True))
        self.stages = Stages(nets[0], algorithm.travels)
        trainer = Trainer(
            nets[0], algorithm.objective.loss, (*algorithm.correct, *algorithm.step), images=images, labels=labels
        )
        settings = [{**algorithm.numbers, "lr": LR, "weight_decay": DECAY, "clip": CLIP} for _ in SEEDS]
        counts = torch.bincount(labels, minlength=4).double()[None]
        self.clients = Clients(trainer, algorithm, counts, w, buffers, settings, self.stages(0), lr_decay=0.9)
        self.kept = None

    def answer(self, sent: bytes, runs: list[int], batches: Batches) -> bytes:
        """Train on its own images; ``batches`` are those of the runs in which it was drawn."""
        down = unpacked(Down, sent)
        self.clients.enter(self.stages(down.t))
        at = torch.full((sum(SIZES),), -1).index_put((self.places,), torch.arange(len(self.places)))
        index = at[batches.index]
        assert all(index[r, t, :n].min() >= 0 for t, row in enumerate(batches.size) for r, n in enumerate(row) if n)
        here = replace(batches, index=index.clamp(min=0))  # beyond a batch's size stands what nobody reads
        alone = torch.zeros(len(runs), 1, dtype=torch.long)
        up, self.kept, finite = self.clients.train(torch.tensor(runs), alone, here, down)
        assert finite.all()
        return packed(up)

    def keep(self) -> None:
        self.clients.keep(self.kept)


def federate(make, data: Data, parts: list, algorithm: A.Algorithm, K: int, **work) -> tuple[Server, list[Machine]]:
    """The whole federation, one machine after the other."""
    machines = [Machine(make, data, part, algorithm) for part in parts]
    w, buffers = first_weights(make)
    own = [algorithm.numbers for _ in SEEDS]
    server = Server(algorithm.server, w, buffers, own, len(parts), algorithm.shared)
    schedule = Schedule([p.numpy() for p in parts], K, 5, view=algorithm.objective.view, **work)
    sizes = torch.tensor(SIZES, dtype=torch.float64)
    for t in range(ROUNDS):
        clients, batches = schedule.draw(SEEDS, t)
        sent, totals = packed(server.begin(t)), Totals.none(server.w, server.buffers)
        for k, machine in enumerate(machines):
            rows = (clients == k).flatten().nonzero().flatten()
            if not len(rows):
                continue
            runs = [int(row) // K for row in rows]
            up = unpacked(Up, machine.answer(sent, runs, batches.take(rows)))
            cohort = sizes[clients[runs]].sum(dim=1, keepdim=True)
            more = Totals.of(up, server.begin(t), torch.tensor(runs), cohort, sizes.sum(), algorithm.server.collect)
            totals.add(unpacked(Totals, packed(more)), torch.tensor(runs))
        expected = sizes[clients].sum(dim=1)
        server.move(totals, range(len(SEEDS)), t, frozen=machines[0].stages(t).frozen, expected=expected)
        for k in clients.unique().tolist():
            machines[k].keep()
    return server, machines


def first_weights(make) -> tuple[torch.Tensor, torch.Tensor]:
    nets = []
    for seed in SEEDS:
        torch.manual_seed(seed)
        nets.append(make().double())
    return tuple(torch.stack(rows) for rows in zip(*(Layout(net).read(net) for net in nets), strict=True))


METHODS = {
    "FedAvg": A.fedavg(),
    "FedProx": A.fedprox(0.3),
    "SCAFFOLD": A.scaffold(),
    "SCAFFOLD, weighted": A.scaffold(weighted=True),
    "FedExP": A.fedexp(),
    "FedYogi": A.fedyogi(),
    "FedDyn": A.feddyn(0.3),
    "FedBN": A.fedbn(),
    "SiloBN": A.silobn(),
    "FedNAR on SCAFFOLD": A.fednar(A.scaffold(), annealing=0.8),
    "layer by layer": A.layerwise(A.simclr(), A.phases(3), 1, budget=2),
}


@pytest.mark.heavy
@pytest.mark.parametrize("name", METHODS)
def test_machines_that_exchange_bytes_give_what_a_simulation_gives(data, parts, name):
    """Unequal clients, a cohort of 3 of 5, two runs; the simulation also in waves."""
    method, make = METHODS[name], transformer if name == "layer by layer" else convolutional
    work = {"local_steps": 3} if name == "layer by layer" else {"local_epochs": 2}
    server, machines = federate(make, data, parts, method, K=3, **work)
    options = {"rounds": ROUNDS, "lr": [LR], "seed": SEEDS, "weight_decay": [DECAY], "clip": [CLIP], "lr_decay": 0.9}
    options |= {"batch_size": 5, "clients_per_round": 3, "precision": "float64", "device": "cpu", "progress": False}
    for wave in (None, 2):
        for s, run in enumerate(fl.sweep(make, data, parts, method, wave=wave, **options, **work)):
            layout = Layout(run.model())
            w, _ = layout.read(run.model())
            assert (w - server.w[s]).abs().max() < 1e-10
            assert (w - first_weights(make)[0][s]).abs().max() > 1e-3  # it has trained
            for k, machine in enumerate(machines):
                alone = machine.clients.row(s, 0, server.w[s], server.buffers[s])
                for own, other in zip(layout.read(run.model(k)), alone, strict=True):
                    assert not own.numel() or (own - other).abs().max() < 1e-10


# --- what is refused ---


@pytest.fixture
def sim(data, parts) -> fl.Simulation:
    return fl.Simulation(
        convolutional, data, parts, A.scaffold(), lr=[0.1], batch_size=5, local_steps=2, device="cpu", engine="clients"
    )


def drawn(sim: fl.Simulation):
    return torch.tensor([0]), *sim.schedule.draw([0], sim.t)


def test_clients_refuse_the_weights_of_another_round_and_of_another_network(sim):
    runs, clients, batches = drawn(sim)
    down = sim.server.begin(3)
    with pytest.raises(ValueError, match="these weights are for round 4, but the clients are in round 1"):
        sim.clients.train(runs, clients, batches, down)
    down = sim.server.begin(0)
    with pytest.raises(ValueError, match=r"does not fit SCAFFOLD and this network: got .*'w': \(1, \d+\)"):
        sim.clients.train(runs, clients, batches, replace(down, w=down.w[:, 1:]))
    with pytest.raises(ValueError, match="does not fit SCAFFOLD .*wanted .*'c'"):
        sim.clients.train(runs, clients, batches, replace(down, told={}))


def test_an_answer_to_another_round_or_of_other_shape_is_refused(sim):
    runs, clients, batches = drawn(sim)
    down = sim.server.begin(0)
    up, _, _ = sim.clients.train(runs, clients, batches, down)
    up.check(down)
    with pytest.raises(ValueError, match="an answer to round 1 came in round 2"):
        up.check(sim.server.begin(1))
    with pytest.raises(
        ValueError, match=r"5 client\(s\) in 1 run\(s\) does not fit this federation: c \(.*wanted none"
    ):
        up.check(replace(down, told={}))
    with pytest.raises(ValueError, match=r"delta \(1, 5, \d+\), wanted \(1, 5, \d+\)"):
        replace(up, delta=up.delta[..., 1:]).check(down)


def test_client_memory_changes_only_when_the_server_has_used_the_round(sim):
    runs, clients, batches = drawn(sim)
    before = sim.clients.memory["c"].clone()
    _, kept, _ = sim.clients.train(runs, clients, batches, sim.server.begin(0))
    assert torch.equal(sim.clients.memory["c"], before)
    sim.clients.keep(kept, without=runs.tolist())  # a late answer: the server went on without it
    assert torch.equal(sim.clients.memory["c"], before)
    sim.clients.keep(kept)
    assert (sim.clients.memory["c"] != before).any()


@pytest.mark.parametrize("engine", ["clients", "stacked"])
def test_a_client_may_keep_its_weights_as_they_are(data, parts, engine):
    """The rows of a cohort become changes as soon as they are sent: what is kept must not change with them."""
    method = A.Algorithm("last", keeps={"last": lambda W, local: W})
    sim = fl.Simulation(
        convolutional, data, parts, method, lr=[0.1], batch_size=5, local_steps=2, device="cpu", engine=engine
    )
    before = sim.server.w.clone()
    sim.step()
    p = (sim.clients.sizes[0] / sim.clients.sizes.sum())[:, None]
    assert (before - sim.server.w).abs().max() > 1e-3
    torch.testing.assert_close((p * sim.clients.memory["last"][0]).sum(dim=0), sim.server.w[0])


def test_a_number_that_is_not_there_is_named():
    with pytest.raises(KeyError, match="no number 'mu' here; there are lr, clip"):
        Local.alone(torch.zeros(2, 3), clip=1.0)["mu"]


@pytest.mark.parametrize("method", [A.fedavg(), A.fedexp(), A.fedwon(standardised=convolutional())])
def test_a_lost_client_leaves_the_mean_of_those_that_came(data, parts, method):
    """Client 4 is lost: what is left is a round of the first four."""

    def start():
        return fl.Simulation(
            convolutional, data, parts, method, lr=[0.1], batch_size=5, local_steps=2, precision="float64", device="cpu"
        )

    sim, few = start(), start()
    runs, clients, batches = drawn(sim)
    down, sizes = sim.server.begin(0), sim.clients.sizes[0]
    up, _, _ = sim.clients.train(runs, clients[:, :4], batches.take(torch.arange(4)), down)
    down, everybody = replace(down, w=down.w.clone()), sizes.sum()
    for one, cohort in ((sim, sizes.sum()), (few, sizes[:4].sum())):
        totals = Totals.none(down.w, down.buffers)
        totals += Totals.of(up, down, runs, cohort.view(1, 1), everybody, method.server.collect)
        one.server.move(totals, [0], 0, expected=cohort.view(1))
    assert (sim.server.w - few.server.w).abs().max() < 1e-12
    assert (sim.server.buffers - few.server.buffers).abs().max() < 1e-12
