"""The engine against a plain per-client loop, in float64, and against itself."""

import contextlib
import copy
import itertools
import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fedlib import algorithms, models, norms, partition, schedule, simulate, texts
from fedlib.cohort import Layout, Local, Trainer
from fedlib.data import Data, from_arrays
from fedlib.workers import cores

N, ROUNDS, SEED, BATCH = 5, 3, 3, 8
SIZES = (24, 9, 17, 30, 11)  # unequal, and not multiples of the batch


@pytest.fixture(scope="module")
def data() -> Data:
    rng = np.random.default_rng(0)

    def split(count: int) -> tuple[np.ndarray, np.ndarray]:
        return rng.integers(0, 256, (count, 8, 8, 3), dtype=np.uint8), rng.integers(0, 4, count)

    return from_arrays("noise", *split(sum(SIZES)), *split(40))


@pytest.fixture(scope="module")
def parts() -> list[torch.Tensor]:
    return list(torch.randperm(sum(SIZES), generator=torch.Generator().manual_seed(2)).split(SIZES))


class Net(nn.Module):
    """A convolution, a norm, two linear layers."""

    def __init__(self, norm: str):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, 6, 3),
            norms.norm_layer(norm, 6, spatial=True),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(54, 7),
            nn.ReLU(),
        )
        self.head = nn.Linear(7, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(x))


def net(norm: str = "none") -> Net:
    torch.manual_seed(0)
    return Net(norm)


def fed(data: Data, parts: list, method: str = "fedavg", norm: str = "none", **options) -> simulate.Run:
    options = {
        "rounds": ROUNDS,
        "lr": 0.1,
        "seed": SEED,
        "batch_size": BATCH,
        "precision": "float64",
        "progress": False,
        "device": "cpu",
        **options,
    }
    if not {"local_steps", "local_epochs"} & set(options):
        options["local_epochs"] = 2
    settings = options.pop("settings", {})
    return simulate.run(net(norm), data, parts, getattr(algorithms, method)(**settings), **options)


def everything(module: nn.Module) -> torch.Tensor:
    return torch.cat([t.detach().flatten() for t in (*module.parameters(), *module.buffers())])


def stream(t: int, k: int) -> np.random.Generator:
    """Of the batches of client k in round t."""
    return np.random.default_rng([SEED, t, 1 + k])


def vector(module: nn.Module) -> torch.Tensor:
    return nn.utils.parameters_to_vector(module.parameters()).detach().clone()


def plain_loop(
    start: nn.Module,
    data: Data,
    parts: list,
    method: str,
    *,
    K: int,
    lr: float = 0.1,
    mu: float = 0.3,
    clip: float | None = None,
    weight_decay: float = 0.0,
    lr_decay: float = 1.0,
    nar: bool = False,
    annealing: float = 1.0,
    weighted: bool = False,
    **work,
) -> nn.Module:
    """Federated training as the papers' algorithm boxes say it, one client after the other.

    With ``nar`` as FedNAR's code does it: half the squared norm of the weights is part of the loss whose gradient is
    clipped. Scaffold's c and the servers of FedExP, FedAvgM and FedAdam are those of that code, too.
    """
    server = copy.deepcopy(start).double()
    x = data.x_train.double() / 255
    c, c_k = torch.zeros_like(vector(server)), [torch.zeros_like(vector(server)) for _ in parts]
    h, h_k = torch.zeros_like(c), [torch.zeros_like(c) for _ in parts]
    m, v = torch.zeros_like(c), torch.full_like(c, 1e-6 if method == "fedyogi" else 0.0)
    for t in range(ROUNDS):
        rng, rate = np.random.default_rng([SEED, t]), lr * lr_decay**t
        cohort = np.arange(N) if K == N else np.sort(rng.choice(N, K, replace=False))
        w, n = vector(server), sum(len(parts[k]) for k in cohort)
        delta, dc, spread = torch.zeros_like(w), torch.zeros_like(w), 0.0
        decay = weight_decay * annealing**t
        buffers = {name: torch.zeros_like(b) for name, b in server.named_buffers()}
        for k in cohort:
            client = copy.deepcopy(server).train()
            batches = schedule.local_batches(stream(t, k), parts[k].numpy(), BATCH, **work)
            for batch in batches:
                client.zero_grad()
                loss = F.cross_entropy(client(x[batch]), data.y_train[batch])
                if nar:
                    loss = loss + 0.5 * decay * sum(p.square().sum() for p in client.parameters())
                loss.backward()
                offset = 0
                for p, q in zip(client.parameters(), server.parameters(), strict=True):
                    if method == "fedprox":
                        p.grad += mu * (p - q).detach()
                    if method == "scaffold":
                        p.grad += (c - c_k[k])[offset : offset + p.numel()].view_as(p)
                    if method == "feddyn":
                        p.grad += mu * (p - q).detach() - h_k[k][offset : offset + p.numel()].view_as(p)
                    offset += p.numel()
                if clip is not None:
                    nn.utils.clip_grad_norm_(client.parameters(), clip)
                with torch.no_grad():
                    for p in client.parameters():
                        p -= rate * (p.grad + (0 if nar else decay) * p)
            moved = vector(client) - w
            delta += len(parts[k]) / n * moved
            spread += len(parts[k]) / n * moved.square().sum()
            for name, b in client.named_buffers():
                buffers[name] += len(parts[k]) / n * b
            new = c_k[k] - c - moved / (len(batches) * rate)
            dc += (new - c_k[k]) / N
            c_k[k] = new
            h_k[k] = h_k[k] - mu * moved
            h = h - mu * moved / N
        c = c + dc
        if weighted:
            c = sum(len(part) / sum(SIZES) * own for part, own in zip(parts, c_k, strict=True))
        if method == "fedexp":
            delta = delta * max(1.0, 0.5 * spread / delta.square().sum())
        if method == "feddyn":
            delta = delta - h / mu
        if method == "fedavgm":
            delta = m = delta + 0.9 * m
        if method == "fedadam_eps":
            m = 0.1 * delta + 0.9 * m
            v = 0.01 * m**2 + 0.99 * v
            delta = 0.1 * (m / 0.1) / (v / 0.01 + 0.01 * 0.9**t).sqrt()
        if method == "fedyogi":
            m = 0.9 * m + 0.1 * delta
            v = v - 0.01 * delta**2 * torch.sign(v - delta**2)
            delta = 0.01 * m / (v.sqrt() + 1e-3)
        nn.utils.vector_to_parameters(w + delta, server.parameters())
        for name, b in server.named_buffers():
            b.copy_(buffers[name])
    return server


@pytest.mark.parametrize("engine", ["clients", "stacked"])
@pytest.mark.parametrize("norm", ["none", "layer", "batch"])
@pytest.mark.parametrize("method", ["fedavg", "fedprox", "scaffold", "fedyogi"])
def test_equals_a_plain_loop(data, parts, method, norm, engine):
    """Unequal clients, a cohort of 3 of 5, epochs that end in a partial batch."""
    expected = plain_loop(net(norm), data, parts, method, K=3, local_epochs=2)
    got = fed(
        data,
        parts,
        method,
        norm,
        clients_per_round=3,
        engine=engine,
        settings={"mu": 0.3} if method == "fedprox" else {},
    )
    assert (everything(got.model()) - everything(expected)).abs().max() < 1e-10


@pytest.mark.parametrize("engine", ["clients", "stacked"])
def test_equals_a_plain_loop_with_clip_decay_and_annealing(data, parts, engine):
    """The clip acts on the corrected gradient and leaves the weight decay outside, as in SGD(weight_decay)."""
    options = {"clip": 0.2, "weight_decay": 0.05, "lr_decay": 0.5, "local_steps": 4}
    expected = plain_loop(net("layer"), data, parts, "scaffold", K=N, **options)
    got = fed(data, parts, "scaffold", "layer", engine=engine, **options)
    assert (everything(got.model()) - everything(expected)).abs().max() < 1e-10


NAR_BACKBONES = {
    "fedavg": {},
    "fedprox": {"mu": 0.3},
    "scaffold": {"weighted": True},
    "feddyn": {"penalty": 0.3},
    "fedexp": {"eps": 0.0},
    "fedavgm": {},
    "fedadam_eps": {"eps_decay": 0.9},
}


@pytest.mark.heavy
@pytest.mark.parametrize("nar", [False, True])
@pytest.mark.parametrize("engine", ["clients", "stacked"])
@pytest.mark.parametrize("method", NAR_BACKBONES)
def test_every_backbone_with_decay_outside_and_inside_the_clip_equals_a_plain_loop(data, parts, method, engine, nar):
    """Unequal clients, a cohort of 3 of 5; the radius bites in most steps, the decay is large."""
    options = {"weight_decay": 0.5, "lr_decay": 0.7, "local_steps": 4}
    expected = plain_loop(
        net("group"),
        data,
        parts,
        method,
        K=3,
        clip=0.8,
        nar=nar,
        annealing=0.5 if nar else 1.0,
        weighted=method == "scaffold",
        **options,
    )
    algorithm = getattr(algorithms, method)(**NAR_BACKBONES[method])
    algorithm = algorithms.fednar(algorithm, max_norm=0.8, annealing=0.5) if nar else algorithm
    got = simulate.run(
        net("group"),
        data,
        parts,
        algorithm,
        rounds=ROUNDS,
        lr=0.1,
        seed=SEED,
        batch_size=BATCH,
        precision="float64",
        clients_per_round=3,
        clip=None if nar else 0.8,
        engine=engine,
        device="cpu",
        progress=False,
        **options,
    )
    assert (everything(got.model()) - everything(expected)).abs().max() < 1e-10


def test_the_radius_of_a_sweep_goes_before_fednars_own(data, parts):
    """A radius that never binds gives plain SGD with weight decay, with the decay inside the clip or outside."""
    options = {
        "rounds": 2,
        "lr": [0.1],
        "weight_decay": [0.3],
        "batch_size": BATCH,
        "local_steps": 3,
        "precision": "float64",
        "progress": False,
        "device": "cpu",
    }
    nar = algorithms.fednar(algorithms.fedavg(), max_norm=0.5)
    own, same, wide, none = (
        everything(run.model())
        for run in simulate.sweep(net(), data, parts, nar, clip=[None, 0.5, 1e6, float("inf")], **options)
    )
    plain = everything(simulate.sweep(net(), data, parts, **options)[0].model())
    assert torch.equal(own, same)
    assert (own - plain).abs().max() > 1e-3
    assert (wide - plain).abs().max() < 1e-10 and (none - plain).abs().max() < 1e-10


def test_a_sweep_combines_numbers_of_the_method(data, parts):
    """Each of them gives what a run of its own gives; 0 is FedAvg."""
    options = {
        "rounds": 2,
        "batch_size": BATCH,
        "local_steps": 3,
        "precision": "float64",
        "progress": False,
        "device": "cpu",
    }
    runs = simulate.sweep(
        net(), data, parts, algorithms.fedprox(0.5), lr=[0.1, 0.3], settings={"mu": [0.5, 0, 2.0]}, **options
    )
    settings = [(run.config["lr"], run.config["mu"]) for run in runs]
    assert settings == [(lr, mu) for lr in (0.1, 0.3) for mu in (0.5, 0.0, 2.0)]
    for lr, mu, run in zip(*zip(*settings, strict=True), runs, strict=True):
        method = algorithms.fedprox(mu) if mu else algorithms.fedavg()
        alone = simulate.run(net(), data, parts, method, lr=lr, **options)
        assert (everything(run.model()) - everything(alone.model())).abs().max() < 1e-12
    assert (everything(runs[0].model()) - everything(runs[1].model())).abs().max() > 1e-3


@pytest.mark.heavy
@pytest.mark.parametrize("engine", ["clients", "stacked"])
@pytest.mark.parametrize("method", ["fedavg", "scaffold", "scaffold, weighted", "fedexp", "fedbn", "standardised"])
def test_waves_change_nothing_but_the_memory_they_need(data, parts, method, engine, monkeypatch):
    """Unequal clients, a cohort of 4 of 5 in waves of 2, two seeds; crops drawn as for the whole cohort."""
    started = nn.Sequential(
        norms.ScaledWSConv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 4)
    )
    algorithm = {
        "scaffold, weighted": algorithms.scaffold(weighted=True),
        "standardised": algorithms.fedwon(standardised=started),
    }.get(method) or getattr(algorithms, method)()
    trained, train = [], Trainer.__call__
    monkeypatch.setattr(Trainer, "__call__", lambda self, W, *rest: trained.append(len(W)) or train(self, W, *rest))

    def sweep(wave: int | None) -> list[simulate.Run]:
        return simulate.sweep(
            started,
            data,
            parts,
            algorithm,
            rounds=3,
            lr=[0.1],
            seed=[0, 1],
            batch_size=BATCH,
            local_epochs=1,
            clients_per_round=4,
            precision="float64",
            wave=wave,
            engine=engine,
            augment="flip+crop",
            device="cpu",
            progress=False,
        )

    whole, waves = sweep(None), sweep(3)
    assert trained == [8] * 3 + [4, 4] * 3  # at most 3 at a time are twice 2
    assert (whole[0].config["wave"], waves[0].config["wave"]) == (4, 2)
    for a, b in zip(whole, waves, strict=True):
        assert (everything(a.model()) - everything(b.model())).abs().max() < 1e-12
        assert (everything(a.model(2)) - everything(b.model(2))).abs().max() < 1e-12
        assert a.history["loss"].tolist() == pytest.approx(b.history["loss"].tolist(), rel=1e-12)


def test_a_wave_is_what_the_free_memory_allows(data, parts, monkeypatch):
    row = 8 * sum(t.numel() for t in net().parameters())
    for free, wave in ((1, 1), (simulate.SHARE * 2 * row * 3, 3), (10**12, 5)):
        monkeypatch.setattr(simulate.psutil, "virtual_memory", lambda free=free: SimpleNamespace(available=free))
        runs = simulate.sweep(
            net(),
            data,
            parts,
            rounds=1,
            lr=[0.1, 0.2],
            batch_size=BATCH,
            local_steps=1,
            precision="float64",
            device="cpu",
            progress=False,
        )
        assert [run.config["wave"] for run in runs] == [wave, wave]


def test_what_clients_keep_is_not_free(data, parts, monkeypatch):
    """SCAFFOLD keeps a row for each of N clients and needs two for each that trains."""
    row = 8 * sum(t.numel() for t in net().parameters())
    for rows, wave in ((N + simulate.SHARE * 2 * 3, 3), (N - 1, 1)):
        monkeypatch.setattr(simulate.psutil, "virtual_memory", lambda rows=rows: SimpleNamespace(available=rows * row))
        with pytest.warns(UserWarning) if wave == 1 else contextlib.nullcontext() as seen:
            run = fed(data, parts, "scaffold", rounds=1, precision="float64")
        assert run.config["wave"] == wave
    assert len(seen) == 1 and f"keeps {N * row / 1e9:.2g} GB for {N} clients between rounds" in str(seen[0].message)


@pytest.mark.parametrize("when", ["first", "last"])
def test_a_run_that_diverges_in_one_wave_keeps_its_state_and_the_other_goes_on(data, parts, when, monkeypatch):
    """Waves of 2, 2 and 1 clients; the last is in the last one. Batch norm stays at home, where nothing changes."""
    sick, trained, train = {"first": 0, "last": N - 1}[when], [], Trainer.__call__

    def falls_ill(G: torch.Tensor, W: torch.Tensor, local: Local) -> torch.Tensor:
        return torch.where((local.client == sick)[:, None] & (local["lr"] > 0.2), torch.nan, G)

    def counted(self, W: torch.Tensor, *rest) -> torch.Tensor:
        trained.append(len(W))
        return train(self, W, *rest)

    monkeypatch.setattr(Trainer, "__call__", counted)
    method = algorithms.replace(algorithms.fedbn(), correct=(falls_ill,), step=())
    options = {
        "rounds": 2,
        "batch_size": BATCH,
        "local_steps": 2,
        "wave": 2,
        "engine": "clients",
        "device": "cpu",
        "progress": False,
    }
    with pytest.warns(UserWarning, match=f"diverged in round 1: .* on client.s. {sick};") as seen:
        broken, fine = simulate.sweep(net("batch"), data, parts, method, lr=[0.3, 0.1], **options)
    assert len(seen) == 1 and broken.diverged and fine.diverged is None
    assert trained == [*((4, 2, 1) if when == "first" else (4, 4, 2)), 2, 2, 1]
    for client in (None, 0, N - 1):
        assert torch.equal(everything(broken.model(client)), everything(net("batch")))
        alone = simulate.run(net("batch"), data, parts, method, lr=0.1, **options)
        assert torch.equal(everything(fine.model(client)), everything(alone.model(client)))


def test_small_decay_and_a_ball_that_holds_every_step_make_base_and_fednar_coincide(data, parts):
    options = {
        "rounds": ROUNDS,
        "lr": 0.1,
        "weight_decay": 1e-3,
        "clip": 1e3,
        "batch_size": BATCH,
        "local_steps": 3,
        "progress": False,
        "device": "cpu",
    }
    for method, settings in NAR_BACKBONES.items():
        base = getattr(algorithms, method)(**settings)
        outside, inside = (simulate.run(net(), data, parts, a, **options) for a in (base, algorithms.fednar(base)))
        assert (everything(outside.model()) - everything(inside.model())).abs().max() < 1e-6, method


def test_annealing_shrinks_the_decay_alone(data, parts):
    """Without a gradient the weights shrink by 1 - lr wd annealing^t in each step of round t."""
    still = algorithms.Algorithm("still", objective=algorithms.Objective(lambda net, x, y, told: 0.0 * net(x).sum()))
    run = simulate.run(
        net(),
        data,
        parts,
        algorithms.fednar(still, max_norm=1e6, annealing=0.5),
        rounds=3,
        lr=0.1,
        weight_decay=1.0,
        local_steps=2,
        batch_size=BATCH,
        precision="float64",
        progress=False,
    )
    factor = (1 - 0.1) ** 2 * (1 - 0.05) ** 2 * (1 - 0.025) ** 2
    torch.testing.assert_close(vector(run.model()), factor * vector(net().double()), rtol=1e-12, atol=1e-12)


TEXT = {
    name: "".join(np.random.default_rng(i).choice(list("abcd "), 300)) for i, name in enumerate(("Ann", "Bob", "Cy"))
}


@pytest.mark.parametrize("method", ["fedavg", "scaffold"])
def test_a_text_trains_alike_in_both_engines_and_in_a_plain_loop(method):
    data = texts.from_texts("letters", TEXT, length=7)
    parts = partition.by_domain(data.domain_train)

    def start() -> nn.Module:
        torch.manual_seed(0)
        return models.small_char_transformer(data.shape, data.num_classes, width=8, heads=2, feedforward=12)

    options = {"rounds": 2, "lr": 0.3, "local_steps": 3, "batch_size": 5, "weight_decay": 0.1, "clip": 0.5}
    runs = [
        simulate.run(
            start(),
            data,
            parts,
            algorithms.fednar(getattr(algorithms, method)()),
            engine=engine,
            precision="float64",
            progress=False,
            device="cpu",
            test_parts=partition.by_domain(data.domain_test),
            **options,
        )
        for engine in ("clients", "stacked")
    ]
    assert (everything(runs[0].model()) - everything(runs[1].model())).abs().max() < 1e-10
    assert runs[0].history["client_accuracy"].notna().all()
    model = runs[0].model()
    right = (model(data.x_test.long()).argmax(1) == data.y_test).double().mean().item()
    assert runs[0].accuracy == pytest.approx(right)
    if method == "fedavg":
        server = start().double()
        for t in range(2):
            rows = []
            for k, part in enumerate(parts):
                client = copy.deepcopy(server)
                rng = np.random.default_rng([0, t, 1 + k])
                for batch in schedule.local_batches(rng, part.numpy(), 5, local_steps=3):
                    client.zero_grad()
                    l2 = sum(p.square().sum() for p in client.parameters())
                    (F.cross_entropy(client(data.x_train[batch].long()), data.y_train[batch]) + 0.05 * l2).backward()
                    nn.utils.clip_grad_norm_(client.parameters(), 0.5)
                    with torch.no_grad():
                        for p in client.parameters():
                            p -= 0.3 * p.grad
                rows.append(vector(client))
            nn.utils.vector_to_parameters(torch.stack(rows).mean(0), server.parameters())
        assert (everything(model) - everything(server)).abs().max() < 1e-10


def test_fedbn_keeps_batch_norm_at_home(data, parts):
    """Each client alone trains its own batch norm; the rest is averaged."""
    own = [copy.deepcopy(net("batch")).double().train() for _ in range(N)]
    x = data.x_train.double() / 255
    for t in range(ROUNDS):
        for k in range(N):
            sgd = torch.optim.SGD(own[k].parameters(), lr=0.1)
            for batch in schedule.local_batches(stream(t, k), parts[k].numpy(), BATCH, local_steps=3):
                sgd.zero_grad()
                F.cross_entropy(own[k](x[batch]), data.y_train[batch]).backward()
                sgd.step()
        for name, _ in own[0].named_parameters():
            if not name.startswith("body.1."):
                mean = sum(len(parts[k]) / sum(SIZES) * own[k].get_parameter(name).detach() for k in range(N))
                for k in range(N):
                    own[k].get_parameter(name).data.copy_(mean)
    test_parts = [torch.arange(8 * k, 8 * k + 8) for k in range(N)]
    right = [
        (own[k].eval()(data.x_test[p].double() / 255).argmax(1) == data.y_test[p]).double()
        for k, p in enumerate(test_parts)
    ]
    for engine in ("clients", "stacked"):
        got = fed(data, parts, "fedbn", "batch", local_steps=3, engine=engine, test_parts=test_parts)
        shared = [n for n, _ in own[0].named_parameters() if not n.startswith("body.1.")]
        gap = max((got.model().get_parameter(n) - own[0].get_parameter(n)).abs().max().item() for n in shared)
        assert gap < 1e-10
        assert got.history["client_accuracy"].iloc[-1] == pytest.approx(torch.stack(right).mean().item())


LOCAL = {  # method -> what stays on a client: batch norm's parameters, its statistics
    "fedavg": (False, False),
    "fedbn": (True, True),
    "silobn": (False, True),
    "standalone": (True, True),
}
TESTS = [torch.arange(8 * k, 8 * k + 8) for k in range(N)]


def loop_with_local_state(
    data: Data, parts: list, method: str, cohorts: int = N, frozen_after: int = ROUNDS, rounds: int = ROUNDS
) -> tuple[list[nn.Module], np.ndarray]:
    """One client after the other: what stays, stays; the rest is averaged over the cohort and sent to everyone.

    Returns the clients' networks and the accuracy of each one (rounds, clients) on its own test images.
    """
    own = [net("batch").double() for _ in range(N)]
    x, found = data.x_train.double() / 255, []
    for t in range(rounds):
        rng = np.random.default_rng([SEED, t])
        cohort = range(N) if cohorts == N else np.sort(rng.choice(N, cohorts, replace=False))
        for k in cohort:
            own[k].train()
            own[k].body[1].train(t < frozen_after)
            sgd = torch.optim.SGD(own[k].parameters(), lr=0.1)
            for batch in schedule.local_batches(stream(t, k), parts[k].numpy(), BATCH, local_steps=3):
                sgd.zero_grad()
                F.cross_entropy(own[k](x[batch]), data.y_train[batch]).backward()
                sgd.step()
        states, weights = [own[k].state_dict() for k in cohort], [len(parts[k]) for k in cohort]
        parameters_stay, statistics_stay = LOCAL.get(method, (False, False))
        for name in states[0]:
            stays = statistics_stay if "running" in name else parameters_stay
            if method == "standalone" or (name.startswith("body.1.") and stays):
                continue
            mean = sum(n / sum(weights) * state[name] for n, state in zip(weights, states, strict=True))
            for client in own:
                client.state_dict()[name].copy_(mean)
        found.append(
            [
                (own[k].eval()(data.x_test[p].double() / 255).argmax(1) == data.y_test[p]).double().mean().item()
                for k, p in enumerate(TESTS)
            ]
        )
    return own, np.array(found)


@pytest.mark.heavy
@pytest.mark.parametrize("engine", ["clients", "stacked"])
@pytest.mark.parametrize("cohort", [N, 3])
@pytest.mark.parametrize("method", LOCAL)
def test_local_batch_norm_equals_a_loop(data, parts, method, cohort, engine):
    """Every client's network, and its accuracy in every round, also for those who sat out."""
    own, accuracies = loop_with_local_state(data, parts, method, cohort)
    run = fed(
        data,
        parts,
        method,
        "batch",
        local_steps=3,
        engine=engine,
        clients_per_round=cohort,
        test_parts=TESTS,
        evaluate_every=1,
    )
    for k, client in enumerate(own):
        assert (everything(run.model(k)) - everything(client)).abs().max() < 1e-10
    assert list(run.clients.index) == list(run.history["round"]) == [1, 2, 3]
    np.testing.assert_allclose(run.clients.to_numpy(), accuracies, atol=1e-12)
    assert run.history["client_accuracy"].to_numpy() == pytest.approx(accuracies.mean(1))


@pytest.mark.parametrize("method", ["fedbn", "silobn", "standalone"])
def test_local_batch_norm_survives_a_checkpoint(data, parts, tmp_path, method):
    """Two rounds, then the rest from the file: as if nothing had happened, and as the loop has it."""
    own, accuracies = loop_with_local_state(data, parts, method)
    options = {"local_steps": 3, "test_parts": TESTS, "evaluate_every": 1, "checkpoint": tmp_path / "run.pt"}
    fed(data, parts, method, "batch", rounds=2, **options)
    run = fed(data, parts, method, "batch", **options)
    for k, client in enumerate(own):
        assert (everything(run.model(k)) - everything(client)).abs().max() < 1e-10
    np.testing.assert_allclose(run.clients.to_numpy(), accuracies, atol=1e-12)


@pytest.mark.parametrize("engine", ["clients", "stacked"])
def test_fixbn_trains_with_the_statistics_of_the_round_it_was_told(data, parts, engine):
    own, _ = loop_with_local_state(data, parts, "fedavg", frozen_after=2, rounds=4)
    run = fed(data, parts, "fixbn", "batch", settings={"after": 2}, rounds=4, local_steps=3, engine=engine, workers=2)
    assert (everything(run.model()) - everything(own[0])).abs().max() < 1e-10
    early = fed(data, parts, "fixbn", "batch", settings={"after": 2}, rounds=2, local_steps=3, engine=engine)
    torch.testing.assert_close(run.model().body[1].running_mean, early.model().body[1].running_mean, rtol=0, atol=1e-14)


def test_standalone_clients_are_runs_of_their_own(data, parts):
    together = fed(data, parts, "standalone", "layer", local_epochs=1, rounds=1)
    for k, part in enumerate(parts):
        alone = net("layer").double().train()
        sgd = torch.optim.SGD(alone.parameters(), lr=0.1)
        for batch in schedule.local_batches(stream(0, k), part.numpy(), BATCH, local_epochs=1):
            sgd.zero_grad()
            F.cross_entropy(alone(data.x_train[batch].double() / 255), data.y_train[batch]).backward()
            sgd.step()
        assert (everything(together.model(k)) - everything(alone)).abs().max() < 1e-10
    assert list(together.history["bytes_up"]) == [0]
    assert torch.equal(everything(together.model()), everything(net("layer").double()))


def test_a_client_that_does_not_exist_is_refused(data, parts):
    run = fed(data, parts, rounds=1)
    assert torch.equal(everything(run.model(2)), everything(run.model()))
    with pytest.raises(ValueError, match="client must be a number from 0 to 4, or None, got 5"):
        run.model(5)


class WSNet(Net):
    """The network of this file with a standardised convolution in place of the norm."""

    def __init__(self, gain: bool = False):
        super().__init__("none")
        self.body[0] = norms.ScaledWSConv2d(3, 6, 3, gain=gain)


def fedwon_loop(data: Data, parts: list, agc: float | None, standardised: bool) -> nn.Module:
    """FedWon one client after the other, units clipped in a loop."""
    torch.manual_seed(0)
    server = WSNet().double()
    x = data.x_train.double() / 255
    for t in range(ROUNDS):
        states = []
        for k in range(N):
            client = copy.deepcopy(server)
            for batch in schedule.local_batches(stream(t, k), parts[k].numpy(), BATCH, local_epochs=2):
                client.zero_grad()
                F.cross_entropy(client(x[batch]), data.y_train[batch]).backward()
                with torch.no_grad():
                    for p in client.parameters():
                        for unit, g in zip(p, p.grad, strict=True) if p.dim() > 1 else [(p, p.grad)]:
                            if agc is not None:
                                g *= min(1.0, agc * max(unit.norm().item(), 1e-3) / max(g.norm().item(), 1e-9))
                            unit -= 0.1 * g
            if standardised:
                client.body[0].weight.data = client.body[0].effective_weight().detach()
            states.append(client.state_dict())
        server.load_state_dict(
            {name: sum(len(parts[k]) / sum(SIZES) * states[k][name] for k in range(N)) for name in states[0]}
        )
    return server


@pytest.mark.heavy
@pytest.mark.parametrize("engine", ["clients", "stacked"])
@pytest.mark.parametrize("agc, standardised", [(None, False), (0.05, False), (None, True), (0.05, True)])
def test_fedwon_equals_a_loop(data, parts, agc, standardised, engine):
    torch.manual_seed(0)
    start = WSNet()
    method = algorithms.fedwon(agc=agc, standardised=start if standardised else None)
    run = simulate.run(
        start,
        data,
        parts,
        method,
        rounds=ROUNDS,
        lr=0.1,
        seed=SEED,
        batch_size=BATCH,
        local_epochs=2,
        precision="float64",
        progress=False,
        device="cpu",
        engine=engine,
    )
    expected = fedwon_loop(data, parts, agc, standardised)
    assert (everything(run.model()) - everything(expected)).abs().max() < 1e-10
    if agc is not None:  # the clip has done something
        assert (everything(expected) - everything(fedwon_loop(data, parts, None, standardised))).abs().max() > 1e-3


def test_units_are_output_channels_and_whole_vectors():
    torch.manual_seed(0)
    layout = Layout(WSNet(gain=True))
    named = dict(WSNet(gain=True).named_parameters())
    expected = [size for p in named.values() for size in ([p[0].numel()] * len(p) if p.dim() > 1 else [p.numel()])]
    units = layout.units()
    assert [size for number, size in units for _ in range(number)] == expected
    assert sum(number * size for number, size in units) == layout.P
    assert all(one[1] != other[1] for one, other in itertools.pairwise(units))  # equal ones stand together


@pytest.mark.heavy
@pytest.mark.parametrize("norm", ["none", "batch"])
@pytest.mark.parametrize("chunk", [1, 2, 3, 5, 99])
def test_chunking_changes_nothing(data, parts, norm, chunk):
    whole = fed(data, parts, "scaffold", norm, engine="clients")
    chunked = fed(data, parts, "scaffold", norm, engine="stacked", chunk=chunk)
    assert (everything(chunked.model()) - everything(whole.model())).abs().max() < 1e-10


@pytest.mark.heavy
@pytest.mark.parametrize("norm", ["none", "batch"])
@pytest.mark.parametrize("fits", [1, 2])
def test_a_full_memory_halves_the_chunk_and_changes_nothing(data, parts, monkeypatch, norm, fits):
    """A device that holds the training of ``fits`` clients, and notices only after a step."""
    train, sizes = Trainer._train_stacked, []

    def small(self, loss_of, rows, W, buffers, batches, local, losses, first):
        sizes.append(rows.stop - rows.start)
        if sizes[-1] <= fits:
            return train(self, loss_of, rows, W, buffers, batches, local, losses, first)
        for tensor in (W, buffers, losses):
            tensor[rows] += 1
        raise torch.cuda.OutOfMemoryError("out of memory")

    whole = fed(data, parts, "scaffold", norm, engine="stacked", chunk=5)
    monkeypatch.setattr(Trainer, "_train_stacked", small)
    with pytest.warns(UserWarning, match="does not hold the training") as warned:
        halved = fed(data, parts, "scaffold", norm, engine="stacked", chunk=5, workers=1)
    assert (everything(halved.model()) - everything(whole.model())).abs().max() < 1e-10
    np.testing.assert_allclose(halved.history["loss"], whole.history["loss"], rtol=1e-10)
    told = [str(w.message) for w in warned if "does not hold" in str(w.message)]
    expected = {1: [(5, 3), (3, 2), (2, 1)], 2: [(5, 3), (3, 2)]}[fits]
    assert [tuple(int(n) for n in re.findall(r"\d+", message)) for message in told] == expected
    assert max(sizes[sizes.index(fits) :]) <= 3 and max(sizes[-N:]) <= fits  # the rounds after it start small


def test_a_memory_too_small_for_one_client_is_an_error(data, parts, monkeypatch):
    def full(*args):
        raise torch.cuda.OutOfMemoryError("out of memory")

    monkeypatch.setattr(Trainer, "_train_stacked", full)
    with pytest.warns(UserWarning, match="from here on 1 at a time"), pytest.raises(torch.cuda.OutOfMemoryError):
        fed(data, parts, engine="stacked", workers=1)


def test_more_workers_than_cores_are_pointed_out(data, parts):
    with pytest.warns(UserWarning, match=f"workers is {cores() + 1}, but this process may use {cores()} cores"):
        fed(data, parts, rounds=1, workers=cores() + 1)


@pytest.mark.heavy
@pytest.mark.filterwarnings("ignore:workers is")
@pytest.mark.parametrize("engine", ["clients", "stacked"])
def test_any_number_of_workers_gives_the_same_bits(data, parts, engine):
    runs = [
        fed(
            data,
            parts,
            "fedprox",
            "batch",
            engine=engine,
            chunk=2,
            workers=workers,
            precision="float32",
            augment="flip+crop",
            normalise=True,
        )
        for workers in (1, 2, 3, 4)
    ]
    for run in runs[1:]:
        assert torch.equal(everything(run.model()), everything(runs[0].model()))
        assert run.history.equals(runs[0].history)


def test_the_callers_thread_count_changes_no_bit_and_is_restored(data, parts):
    before, finals = torch.get_num_threads(), []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            finals.append(everything(fed(data, parts, precision="float32", engine="stacked").model()))
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    assert torch.equal(*finals)


@pytest.mark.heavy
@pytest.mark.parametrize("method", ["scaffold", "fedexp", "fedadam"])
def test_a_sweep_gives_what_separate_runs_give(data, parts, method):
    axes = {"lr": [0.05, 0.2], "weight_decay": [0.0, 0.1], "clip": [None, 0.5], "seed": [0, 7]}
    common = {
        "rounds": 2,
        "batch_size": BATCH,
        "local_steps": 2,
        "clients_per_round": 3,
        "precision": "float64",
        "progress": False,
        "device": "cpu",
    }
    together = simulate.sweep(
        lambda: Net("batch"), data, parts, getattr(algorithms, method)(), engine="stacked", chunk=7, **axes, **common
    )
    assert [r.config["lr"] for r in together] == [0.05] * 8 + [0.2] * 8
    for run in together[::3]:
        one = {name: run.config[name] for name in axes}
        alone = simulate.run(
            lambda: Net("batch"), data, parts, getattr(algorithms, method)(), engine="clients", **one, **common
        )
        assert (everything(run.model()) - everything(alone.model())).abs().max() < 1e-10
        np.testing.assert_allclose(run.history.to_numpy(float), alone.history.to_numpy(float), rtol=1e-9)


def test_other_runs_of_a_sweep_do_not_change_a_runs_augmentation(data, parts):
    """Cohorts of unequal clients differ between seeds in their number of steps."""
    options = {
        "rounds": 3,
        "lr": [0.1],
        "batch_size": BATCH,
        "local_epochs": 1,
        "clients_per_round": 1,
        "augment": "flip+crop",
        "precision": "float64",
        "progress": False,
        "device": "cpu",
    }
    together = simulate.sweep(lambda: Net("none"), data, parts, seed=[0, 1, 2, 3], **options)
    for run in together:
        alone = simulate.sweep(lambda: Net("none"), data, parts, seed=[run.config["seed"]], **options)[0]
        assert (everything(run.model()) - everything(alone.model())).abs().max() < 1e-10


def test_augmentation_is_the_same_in_both_engines_and_does_something(data, parts):
    plain, each, stacked = (
        fed(data, parts, augment=a, engine=e)
        for a, e in ((None, "clients"), ("flip+crop", "clients"), ("flip+crop", "stacked"))
    )
    assert (everything(each.model()) - everything(stacked.model())).abs().max() < 1e-10
    assert (everything(each.model()) - everything(plain.model())).abs().max() > 1e-4


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("engine", ["clients", "stacked"])
@pytest.mark.parametrize("norm", ["none", "batch"])
@pytest.mark.parametrize("method", ["fedavg", "scaffold", "fedbn"])
def test_a_gpu_gives_what_a_cpu_gives(data, parts, method, norm, engine):
    """Six rounds of equal batches, so that a CUDA graph is captured and replayed."""
    if method == "fedbn" and norm == "none":
        pytest.skip("fedbn needs batch norm")
    options = {"rounds": 6, "local_steps": 3, "batch_size": 8, "augment": "flip+crop", "normalise": True, "chunk": 2}
    on_cpu = fed(data, parts, method, norm, engine=engine, **options)
    on_gpu = fed(data, parts, method, norm, engine=engine, device="cuda", **options)
    assert (everything(on_gpu.model()) - everything(on_cpu.model())).abs().max() < 1e-10


def test_bf16_stays_close_to_float32(data, parts):
    exact, coarse = (everything(fed(data, parts, precision=p).model()) for p in ("float32", "bf16"))
    assert 0 < (exact - coarse).norm() / exact.norm() < 0.05


def test_layout_is_a_bijection():
    module = net("batch").double()
    layout = Layout(module)
    row, buffers = layout.read(module)
    other = copy.deepcopy(module)
    for t in (*other.parameters(), *other.buffers()):
        t.data.zero_()
    layout.bind(other, row, buffers)
    assert torch.equal(everything(other), everything(module))
    row += 1
    assert torch.equal(vector(other), row)  # views, not copies
    columns, buffer_columns = layout.columns({"body.1.weight", "body.1.running_var"}, torch.device("cpu"))
    assert torch.equal(row[columns], other.get_parameter("body.1.weight"))
    assert torch.equal(buffers[buffer_columns], other.get_buffer("body.1.running_var"))


def test_history_says_what_happened(data, parts):
    test_parts = [torch.arange(8 * k, 8 * k + 8) for k in range(N)]
    run = fed(data, parts, "scaffold", "batch", clients_per_round=2, evaluate_every=2, test_parts=test_parts)
    assert list(run.history["round"]) == [2, 3]
    model = run.model()
    right = (model(data.x_test.double() / 255).argmax(1) == data.y_test).double()
    assert run.accuracy == pytest.approx(right.mean().item())
    assert run.history["client_accuracy"].iloc[-1] == pytest.approx(np.mean([right[p].mean() for p in test_parts]))
    parameters, statistics = sum(p.numel() for p in model.parameters()), 12
    # two clients, four bytes a number; the model and its control variate, and the batch-norm statistics once
    assert list(run.history["bytes_up"]) == [2 * 4 * (2 * parameters + statistics)] * 2
    assert run.config["engine"] in ("clients", "stacked") and run.diverged is None


@pytest.mark.parametrize("K, engine", [(1, "clients"), (2, "clients"), (3, "stacked"), (5, "stacked")])
def test_few_rows_are_not_worth_stacking(data, parts, K, engine):
    assert fed(data, parts, clients_per_round=K, rounds=1).config["engine"] == engine


def test_loss_is_the_mean_over_steps_and_clients(data, parts):
    """A learning rate too small to move anything leaves the loss of the initial network."""
    run = fed(data, parts, lr=1e-12, rounds=1, local_epochs=1)
    x, start = data.x_train.double() / 255, net().double()
    expected = 0.0
    for k, part in enumerate(parts):
        steps = schedule.local_batches(stream(0, k), part.numpy(), BATCH, local_epochs=1)
        losses = [F.cross_entropy(start(x[b]), data.y_train[b]).item() for b in steps]
        expected += len(part) / sum(SIZES) * np.mean(losses)
    assert run.history["loss"].iloc[0] == pytest.approx(expected, rel=1e-8)
