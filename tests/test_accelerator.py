"""The path of a GPU, on one that is not there (``emulated.py``): right numbers, no waiting, little to launch."""

import warnings
from dataclasses import replace

import pytest
import torch
from emulated import KIND, emulated  # noqa: F401  (a fixture)
from torch import nn

import fedlib as fl
from fedlib import accelerator, algorithms, models, simulate

A = algorithms
ROUNDS = 4
STACKED = {"engine": "stacked"}
EQUAL = {"local_steps": 3, "batch_size": 8}
CLIPPED = {"weight_decay": [0.1], "clip": [1.0]}
EPOCHS = {"local_epochs": 1, "batch_size": 32}


@pytest.fixture(scope="module")
def digits():
    return fl.data.some(fl.data.load("digits"), 400, 60)


@pytest.fixture(scope="module")
def parts(digits):
    return fl.partition.n_class(digits.y_train, 10, 1, seed=0)


@pytest.fixture(scope="module")
def unequal(digits):
    return fl.partition.dirichlet(digits.y_train, 6, 0.5, seed=0)


class Reordered(nn.Module):
    """Has a buffer of whole numbers, which is no part of a row."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU())
        self.head = nn.Linear(16, 10)
        self.register_buffer("order", torch.randperm(16, generator=torch.Generator().manual_seed(0)))

    def forward(self, x):
        return self.head(self.body(x).index_select(1, self.order))


def cnn(norm="layer", **options):
    return lambda: models.slim_cnn((1, 8, 8), 10, norm=norm, width=4, hidden=16, **options)


def dropping():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Dropout(0.2), nn.Linear(16, 10))


def encoder():
    return models.vit_encoder((1, 8, 8), 8, patch=4, width=8, depth=4, heads=2, hidden=16)


# name -> network, method, options, whether the clients are unequal
CASES = {
    "FedAvg": (cnn(), A.fedavg(), EQUAL, False),
    "SCAFFOLD in waves of 4, 3 and 3": (cnn(), A.scaffold(), {**EQUAL, "wave": 4}, False),
    "FedNAR, images cropped": (cnn("group"), A.fednar(A.fedavgm()), {**EQUAL, **CLIPPED, "augment": "crop"}, False),
    "FedBN": (cnn("batch"), A.fedbn(), EQUAL, False),
    "FixBN": (cnn("batch"), A.fixbn(2), EQUAL, False),
    "FedWon": (cnn("wsconv"), A.fedwon(agc=0.1), EQUAL, False),
    "epochs of unequal clients": (cnn(), A.fedavg(), EPOCHS, True),
    "epochs of unequal clients, BN, SCAFFOLD": (cnn("batch"), A.scaffold(), EPOCHS, True),
    "dropout": (dropping, A.fedavg(), {**EQUAL, "local_steps": 40}, False),
    "whole numbers in a buffer": (Reordered, A.fedavg(), EQUAL, False),
    "layer-wise with depth dropout": (encoder, A.layerwise(A.simclr(), A.phases(4), 2, budget=3), EQUAL, False),
}  # fmt: skip


def simulated(case, data, parts, device, engine, **more):
    network, method, options, _ = CASES[case]
    sim = fl.Simulation(
        network, data, parts, method, lr=[0.1], precision="float64", device=device, engine=engine, **options, **more
    )
    return sim


def weights(sim):
    """Of every client's network."""
    (run,) = sim.runs()
    nets = [run.model(k) for k in (None, 0, 3)]
    return torch.cat([t.detach().double().flatten() for net in nets for t in (*net.parameters(), *net.buffers())])


@pytest.fixture(scope="module")
def expected(digits, parts, unequal):
    """By case and engine: weights on a CPU, before a device is put in its place."""
    found = {}
    for case, (*_, differ) in CASES.items():
        for engine in ("stacked", "clients"):
            sim = simulated(case, digits, unequal if differ else parts, "cpu", engine, workers=1)
            for _ in range(ROUNDS):
                sim.step()
            found[case, engine] = weights(sim)
    return found


@pytest.mark.heavy
@pytest.mark.parametrize("engine", ["stacked", "clients"])
@pytest.mark.parametrize("case", CASES)
def test_a_round_is_recorded_and_right(case, engine, digits, parts, unequal, expected, request):
    log = request.getfixturevalue("emulated")
    differ = CASES[case][3]
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # such as that it runs without a graph
        sim = simulated(case, digits, unequal if differ else parts, KIND, engine)
        log.clear()
        for _ in range(ROUNDS):
            sim.step()
    waves = -(-sim.config["clients_per_round"] // sim.config["wave"])
    # Whether weights are finite is asked wave by wave, then of the server's; the losses come with it.
    asked = sum(log.waits.values()) / ROUNDS
    assert asked <= 2 + waves, log.waits
    assert log.recordings and log.replays
    # A network with batch norm divides by the deviation of a batch, which may be tiny, and so enlarges rounding.
    assert (weights(sim) - expected[case, engine]).abs().max() < (1e-6 if "BN" in case else 1e-12)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("recorded", [True, False])
@pytest.mark.parametrize("engine", ["stacked", "clients"])
@pytest.mark.parametrize("case", CASES)
def test_a_real_gpu_gives_what_a_cpu_gives(case, engine, recorded, digits, parts, unequal, expected, tmp_path):
    """And goes on from a checkpoint."""
    held = unequal if CASES[case][3] else parts
    sim = simulated(case, digits, held, "cuda", engine)
    sim.clients.trainer.recordings.possible = recorded
    for _ in range(ROUNDS - 1):
        sim.step()
    sim.save(tmp_path / "half")
    again = simulated(case, digits, held, "cuda", engine)
    again.load(tmp_path / "half")
    for one in (sim, again):
        one.step()
        assert (weights(one) - expected[case, engine]).abs().max() < (1e-6 if "BN" in case else 1e-10)
    assert bool(sim.clients.trainer.recordings.made) == recorded


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("precision, bound", [("float32", 1e-4), ("tf32", 1e-2), ("bf16", 3e-2)])
def test_precisions_of_a_real_gpu(digits, parts, precision, bound):
    """After a few rounds, as a share of how far the weights have come."""
    ended = {}
    for device, of in (("cpu", "float64"), ("cuda", precision)):
        sim = fl.Simulation(cnn(), digits, parts, lr=[0.1], **EQUAL, device=device, precision=of)
        start = weights(sim)
        for _ in range(ROUNDS):
            sim.step()
        ended[device] = weights(sim)
    assert (ended["cuda"] - ended["cpu"]).norm() < bound * (ended["cpu"] - start).norm()


# Launches of a local step that is not recorded, of ten clients side by side: fewer are better, more are a step back.
LAUNCHES = {"FedAvg": 130, "FedBN": 140, "FedWon": 260}


@pytest.mark.parametrize("case", LAUNCHES)
def test_what_a_step_launches(case, emulated, digits, parts):  # noqa: F811
    sims = [simulated(case, digits, parts, KIND, "stacked") for _ in range(2)]
    counts = []
    for sim, steps in zip(sims, (3, 13), strict=True):
        sim.schedule = replace(sim.schedule, local_steps=steps)
        emulated.clear()
        sim.step()
        counts.append(sum(emulated.launches.values()))
    assert (counts[1] - counts[0]) / 10 <= LAUNCHES[case]


def test_a_long_round_is_a_few_blocks(emulated, digits, parts):  # noqa: F811
    sim = fl.Simulation(cnn(), digits, parts, lr=[0.1], local_steps=70, batch_size=4, device=KIND, **STACKED)
    for _ in range(5):
        sim.step()
    # Of 32, 32 and 6 steps: the second block is the first one's second meeting.
    assert emulated.recordings == 2
    emulated.clear()
    sim.step()
    assert emulated.launches["a recording"] == 3 and sum(emulated.launches.values()) <= 120


def test_waves_of_two_sizes_are_both_recorded(emulated, digits, parts):  # noqa: F811
    sim = fl.Simulation(cnn(), digits, parts[:5], lr=[0.1], **EQUAL, wave=3, device=KIND, **STACKED)
    for _ in range(4):
        sim.step()
    assert emulated.recordings == 2 and emulated.replays == 6


def test_stages_that_come_again_are_recorded_once(emulated, digits, parts):  # noqa: F811
    """Blocks are left out at random, so that a stage changes nearly every round, and comes again."""
    method = A.layerwise(A.simclr(), A.phases(4), 12, budget=3)
    sim = fl.Simulation(encoder, digits, parts, method, lr=[0.1], **EQUAL, device=KIND, **STACKED)
    keys = set()
    for _ in range(48):
        sim.step()
        keys.add(sim.clients.trainer.key)
    assert emulated.recordings <= len(keys)


def test_a_method_that_looks_is_not_recorded(emulated, digits, parts):  # noqa: F811
    looks = A.Algorithm("looks", correct=(lambda G, W, local: G * float(G.norm().item() >= 0),))
    ran = {}
    for name, method in (("looks", looks), ("not", A.fedavg())):
        sim = fl.Simulation(cnn(), digits, parts, method, lr=[0.1], **EQUAL, device=KIND, precision="float64")
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            for _ in range(3):
                sim.step()
        ran[name] = weights(sim), [str(w.message) for w in told if "CUDA graph" in str(w.message)], emulated.recordings
    assert len(ran["looks"][1]) == 1 and "_local_scalar_dense" in ran["looks"][1][0]
    assert not ran["not"][1] and (ran["looks"][2], ran["not"][2]) == (0, 1)
    assert (ran["looks"][0] - ran["not"][0]).abs().max() < 1e-12


def test_what_leaves_no_room_is_not_recorded(emulated, digits, parts):  # noqa: F811
    sim = fl.Simulation(cnn(), digits, parts, lr=[0.1], **EQUAL, device=KIND)
    sim.step()
    emulated.memory = 100
    sim.step()
    assert not emulated.recordings
    emulated.memory = 10**9
    sim.step()
    assert emulated.recordings == 1


def test_too_many_shapes_are_forgotten(emulated, digits):  # noqa: F811
    """A wave of every size from 1 to 6: what the first ones held is given back, and the numbers stay right."""
    made = accelerator.Recordings()
    for rows in range(1, accelerator.SHAPES + 3):
        for _ in range(3):
            W = torch.zeros(rows, 4, device=KIND)
            made.begin(W.shape)
            place = made.held("W", W)
            work = _Work(place)
            made.do(rows, work, [place])
            assert place.here.eq(1).all()
    assert len(made.shapes) <= accelerator.SHAPES and len(made.kept) <= accelerator.SHAPES


def test_recordings_that_take_turns_do_not_drive_one_another_out(emulated):  # noqa: F811
    """Ten pieces of work in turns, with room for eight: those stay, and two are done as they come."""
    made, place = accelerator.Recordings(), torch.zeros(1, 4, device=KIND)
    for turn in range(6):
        for key in range(accelerator.GRAPHS + 2):
            made.do(key, _Work(place), [place])
        assert place.here.eq((turn + 1) * (accelerator.GRAPHS + 2)).all()
    assert emulated.recordings == accelerator.GRAPHS == len(made.kept)
    for _ in range(accelerator.PATIENCE + 2):  # one of the others alone, for long
        made.do(accelerator.GRAPHS, _Work(place), [place])
    assert emulated.recordings == accelerator.GRAPHS + 1 and len(made.kept) == accelerator.GRAPHS


def test_recordings_make_room_for_work_that_does_not_fit(emulated):  # noqa: F811
    made, place = accelerator.Recordings(), torch.zeros(1, 4, device=KIND)
    for _ in range(2):
        made.do("small", _Work(place), [place])

    class Large(_Work):
        def __call__(self):
            super().__call__()
            if made.kept:
                raise torch.cuda.OutOfMemoryError("out of memory")

    made.do("large", Large(place), [place])
    assert place.here.eq(3).all() and not made.kept  # once, though it was begun twice
    made.possible = True
    with pytest.raises(RuntimeError, match="something else"):
        made.do("broken", _Broken(place), [place])


class _Work:
    """Adds 1; ``args`` as those of a partial are."""

    def __init__(self, place):
        self.args = (place,)

    def __call__(self):
        self.args[0].add_(1)


class _Broken(_Work):
    def __call__(self):
        raise RuntimeError("something else")


def test_a_factory_that_gives_a_network_on_the_device(emulated, digits, parts):  # noqa: F811
    made = simulate._networks(lambda: cnn()().to(KIND), [0, 1], torch.float64)
    assert all(p.device.type == "cpu" and p.dtype == torch.float64 for net in made for p in net.parameters())


def test_the_next_round_is_drawn_ahead_and_is_the_same(emulated, digits, parts):  # noqa: F811
    sim = fl.Simulation(cnn(), digits, parts, lr=[0.1], **EQUAL, clients_per_round=3, device=KIND)
    sim.step()
    seeds, t = sim.ahead[0]
    ahead, now = sim.ahead[1].result(), sim.schedule.prepare([0], 1)
    assert (seeds, t) == ([0], 1) and torch.equal(ahead[0], now[0]) and torch.equal(ahead[1].index, now[1].index)


def test_bf16_is_refused_where_it_is_emulated(emulated, digits, parts):  # noqa: F811
    emulated.bf16 = False
    with pytest.raises(ValueError, match="precision 'bf16' needs a GPU that computes in bfloat16"):
        fl.Simulation(cnn(), digits, parts, lr=[0.1], **EQUAL, device=KIND, precision="bf16")


# --- TF32: in the network where it was asked for, nowhere else ---


def switches():
    return torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32


@pytest.mark.parametrize("before", [True, False])
def test_switches_are_put_back(before):
    was, gpu = switches(), torch.device("cuda")
    with accelerator.tf32(before, gpu):
        for allowed in (True, False):
            with accelerator.tf32(allowed, gpu):
                assert switches() == (allowed, allowed)
            with accelerator.tf32(allowed, torch.device("cpu")):
                assert switches() == (before, before)
        with pytest.raises(RuntimeError), accelerator.tf32(not before, gpu):
            raise RuntimeError
        assert switches() == (before, before)
    assert switches() == was


@pytest.mark.parametrize("precision", ["float32", "tf32", "float64"])
def test_tf32_is_for_the_network_alone(emulated, digits, parts, precision):  # noqa: F811
    seen = {}

    def loss(net, x, y, told):
        seen["network"] = switches()
        return nn.functional.cross_entropy(net(x), y)

    def collect(reports):
        seen["sums"] = switches()
        return {}

    usual = A.fedavg()
    objective, server = replace(usual.objective, loss=loss), replace(usual.server, collect=collect)
    method = replace(usual, objective=objective, server=server)
    sim = fl.Simulation(cnn(), digits, parts, method, lr=[0.1], **EQUAL, device=KIND, precision=precision)
    with accelerator.tf32(True, torch.device(KIND)):  # whatever was set before
        sim.step()
        sim.evaluate()
    assert seen == {"network": (precision == "tf32",) * 2, "sums": (False, False)}


def test_engines_are_timed_and_the_faster_one_goes_on(emulated, digits, parts, monkeypatch):  # noqa: F811
    """By a clock that says what each round took: the engine "clients" 3 s, "stacked" 2."""
    sim = fl.Simulation(cnn(), digits, parts, lr=[0.1], **EQUAL, device=KIND, precision="float64")
    ticks = iter([0, 9, 0, 9, 0, 3, 0, 9, 0, 9, 0, 2])
    monkeypatch.setattr(simulate.time, "perf_counter", lambda: next(ticks))
    used = []
    for _ in range(8):
        used.append(sim.trial.next.engine)
        sim.step()
    fresh = fl.Simulation(cnn(), digits, parts, lr=[0.1], **EQUAL, device=KIND, precision="float64")
    assert fresh._identity.made == sim._identity.made  # a checkpoint of it goes on without a warning
    assert used == ["clients"] * 3 + ["stacked"] * 5 and sim.runs()[0].config["engine"] == "stacked"
    emulated.clear()
    sim.step()
    assert sum(emulated.waits.values()) <= 3  # nothing is timed any more
    alone = fl.Simulation(cnn(), digits, parts, lr=[0.1], **EQUAL, device=KIND, precision="float64", engine="clients")
    for _ in range(9):
        alone.step()
    assert (weights(sim) - weights(alone)).abs().max() < 1e-12
