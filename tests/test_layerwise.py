"""Layer-wise training against a plain per-client loop, and what it promises: frozen, dropped, counted, refused."""

import copy
import math
import re
from collections import Counter

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from fedlib import algorithms, cohort, data, models, schedule, simulate, texts
from fedlib.algorithms import layerwise, nt_xent, phases, simclr

SHAPE, DEPTH, TAU, SEED, BATCH = (1, 8, 8), 4, 0.5, 3, 4
SIZES = (6, 10, 7)  # unequal; no epoch ends with a batch of one image


@pytest.fixture(scope="module")
def noise() -> data.Data:
    rng = np.random.default_rng(0)
    return data.from_arrays(
        "noise",
        rng.integers(0, 256, (sum(SIZES), 8, 8, 1), dtype=np.uint8),
        np.arange(sum(SIZES)) % 3,
        rng.integers(0, 256, (9, 8, 8, 1), dtype=np.uint8),
        np.arange(9) % 3,
    )


@pytest.fixture(scope="module")
def parts() -> list[torch.Tensor]:
    return list(torch.randperm(sum(SIZES), generator=torch.Generator().manual_seed(2)).split(SIZES))


def encoder(depth: int = DEPTH) -> models.Classifier:
    net = models.vit_encoder(SHAPE, 6, patch=4, width=8, depth=depth, heads=2, hidden=8)
    for number, block in enumerate(net.body.blocks, start=1):
        block.number = number
    return net


def start(depth: int = DEPTH) -> models.Classifier:
    torch.manual_seed(0)
    return encoder(depth)


def fed(noise, parts, method, *, make=start, **options) -> simulate.Run:
    options = {
        "rounds": 1,
        "lr": 0.3,
        "seed": SEED,
        "batch_size": BATCH,
        "precision": "float64",
        "evaluate_every": 1,
        "progress": False,
        "device": "cpu",
        **options,
    }
    if "local_steps" not in options:
        options.setdefault("local_epochs", 1)
    return simulate.run(make, noise, parts, method, **options)


def vector(net: nn.Module) -> torch.Tensor:
    return nn.utils.parameters_to_vector(net.parameters()).detach()


def by_place(net: nn.Module) -> dict[object, torch.Tensor]:
    """All weights of the patches, of each block (1, 2, ...) and of the head as one vector each."""
    places = {"patches": net.body.patches, "head": net.head, **dict(enumerate(net.body.blocks, start=1))}
    return {place: vector(module) for place, module in places.items()}


# --- the loss ---


def loss_of_views(z: torch.Tensor, tau: float) -> torch.Tensor:
    """SimCLR's Eq. 1, one view after the other: 0 and 1 are views of one image, 2 and 3, ..."""
    z, losses = [v / v.norm() for v in z], []
    for i in range(len(z)):
        partner = i + 1 if i % 2 == 0 else i - 1
        others = sum(((z[i] @ z[m]) / tau).exp() for m in range(len(z)) if m != i)
        losses.append(-torch.log(((z[i] @ z[partner]) / tau).exp() / others))
    return sum(losses) / len(losses)


def loss_at(z: torch.Tensor, tau: float) -> torch.Tensor:
    return nt_xent(nn.Identity(), z, None, {"tau": tau})


@pytest.mark.parametrize("pairs", [2, 3, 8])
@pytest.mark.parametrize("tau", [0.1, 0.5, 2.0])
def test_contrastive_loss_is_its_definition(pairs, tau):
    z = 3 * torch.randn(2 * pairs, 5, generator=torch.Generator().manual_seed(pairs), dtype=torch.float64)
    torch.testing.assert_close(loss_at(z, tau), loss_of_views(z, tau), rtol=1e-12, atol=0)


def test_contrastive_loss_by_hand():
    """Two images whose views agree and are at right angles; one image has only its partner to be found among."""
    z = torch.tensor([[2.0, 0], [5, 0], [0, 1], [0, 3]], dtype=torch.float64)
    assert loss_at(z, 0.5).item() == pytest.approx(math.log(1 + 2 * math.exp(-1 / 0.5)), rel=1e-12)
    assert loss_at(z[:2], 0.5).item() == 0
    assert loss_at(z[[0, 2, 1, 3]], 0.5) > loss_at(z, 0.5)  # other pairs, another loss


def test_contrastive_loss_does_not_depend_on_the_order_of_images_or_views():
    z = torch.randn(8, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    loss = loss_at(z, TAU)
    torch.testing.assert_close(loss_at(z.view(4, 2, 5)[[2, 0, 3, 1]].view(8, 5), TAU), loss)
    torch.testing.assert_close(loss_at(z.view(4, 2, 5).flip(1).reshape(8, 5), TAU), loss)


def test_contrastive_loss_reaches_every_parameter():
    net, x = start().double(), torch.rand(6, *SHAPE, dtype=torch.float64)
    nt_xent(net, x, None, {"tau": TAU}).backward()
    for name, p in net.named_parameters():
        # Keys share a bias that softmax takes away again: its gradient is zero but for rounding.
        assert p.grad is not None and p.grad.abs().max() > 1e-9, name


# --- a plain loop ---


def plain_loop(
    noise,
    parts,
    plan,
    rounds: int,
    total: int,
    running,
    *,
    K: int,
    method: str = "fedavg",
    lr: float = 0.3,
    clip: float | None = None,
    weight_decay: float = 0.0,
    **work,
) -> nn.Module:
    """Rounds of layer-wise training, one client and one block after the other. ``running(t)``: the blocks of round t.

    What does not learn is in no optimiser, in no norm and in no server's memory.
    """
    server = start().double()
    x, momentum = noise.x_train.double() / 255, {}
    for t in range(total):
        active, blocks = plan[min(t // rounds, len(plan) - 1)], running(t)

        def forward(net: nn.Module, images: torch.Tensor, blocks=blocks) -> torch.Tensor:
            h = net.body.patches(images)
            for b in blocks:
                h = net.body.blocks[b - 1](h)
            return net.head(h.mean(1))

        def learning(net: nn.Module, active=active, blocks=blocks) -> list[nn.Parameter]:
            modules = [net.body.patches] * (1 in active) + [net.body.blocks[b - 1] for b in active if b in blocks]
            return [p for module in (*modules, net.head) for p in module.parameters()]

        rng = np.random.default_rng([SEED, t])
        chosen = np.arange(len(parts)) if K == len(parts) else np.sort(rng.choice(len(parts), K, replace=False))
        streams = [np.random.default_rng([SEED, t, 1 + k]) for k in chosen]
        batches = [
            schedule.local_batches(own, parts[k].numpy(), BATCH, **work) for own, k in zip(streams, chosen, strict=True)
        ]
        views = []
        for k, own in zip(chosen, batches, strict=True):
            shape = (len(own), 2 * max(map(len, own)))
            drawn = simclr().objective.view(np.random.default_rng([SEED, t, 1 + k, 2]), shape)
            views.append(torch.from_numpy(drawn).float())
        before = [p.detach().clone() for p in learning(server)]
        delta, total_images = [torch.zeros_like(p) for p in before], sum(len(parts[k]) for k in chosen)
        for i, k in enumerate(chosen):
            client = copy.deepcopy(server)
            own = learning(client)
            sgd = torch.optim.SGD(own, lr=lr, weight_decay=0.0 if method == "fednar" else weight_decay)
            for step, batch in enumerate(batches[i]):
                twice = torch.from_numpy(batch).repeat_interleave(2)
                loss = loss_of_views(forward(client, data.distort(x[twice], views[i][step, : len(twice)])), TAU)
                if method == "fednar":
                    loss = loss + weight_decay / 2 * sum(p.square().sum() for p in own)
                if method == "fedprox":
                    loss = loss + 0.3 / 2 * sum((p - q).square().sum() for p, q in zip(own, before, strict=True))
                client.zero_grad()
                loss.backward()
                if clip is not None:
                    nn.utils.clip_grad_norm_(own, clip)
                sgd.step()
            for d, p, q in zip(delta, own, before, strict=True):
                d += len(parts[k]) / total_images * (p.detach() - q)
        with torch.no_grad():
            for p, d in zip(learning(server), delta, strict=True):
                if method == "fedavgm":
                    d = momentum[p] = d + 0.9 * momentum.get(p, 0)
                p += d
    return server


PLANS = {  # plan, budget, and which blocks run in phase s where that leaves no choice
    "one block": (phases(DEPTH), 2, [(1,), (1, 2), (1, 3), (1, 4)]),
    "two blocks": (phases(DEPTH, active=2), 3, [(1, 2), (1, 3, 4)]),
    "progressive": (phases(DEPTH, progressive=True), 2, [(1,), (1, 2), (1, 3), (1, 4)]),
    "end to end": (phases(DEPTH, active=DEPTH), None, [(1, 2, 3, 4)]),
}
METHODS = {
    "fedavg": {},
    "fedprox": {},
    "fedavgm": {},
    "clip and decay": {"clip": 0.5, "weight_decay": 0.4},
    "fednar": {"clip": 0.5, "weight_decay": 0.4},
}


def build(method: str, **options) -> algorithms.Algorithm:
    """SimCLR with the direction and the server of another method."""
    base = simclr(TAU, **options)
    if method in ("fedprox", "fedavgm"):
        other = algorithms.fedprox(mu=0.3) if method == "fedprox" else algorithms.fedavgm(momentum=0.9)
        settings = {**base.settings, **other.settings}
        return algorithms.replace(base, settings=settings, correct=other.correct, server=other.server)
    return algorithms.fednar(base) if method == "fednar" else base


@pytest.mark.heavy
@pytest.mark.parametrize("engine", ["clients", "stacked"])
@pytest.mark.parametrize(
    "plan, method",
    [
        *(("one block", method) for method in METHODS),
        ("two blocks", "fedavg"),
        ("progressive", "fedavgm"),
        ("progressive", "fednar"),
        ("end to end", "fedavg"),
    ],
)
def test_a_layerwise_run_equals_a_plain_loop(noise, parts, plan, method, engine):
    """Unequal clients, a cohort of 2 of 3, epochs that end in a smaller batch, blocks that are left out."""
    blocks, budget, running = PLANS[plan]
    expected = plain_loop(
        noise,
        parts,
        blocks,
        1,
        len(blocks),
        lambda t: running[t],
        K=2,
        method=method,
        local_epochs=1,
        **METHODS[method],
    )
    got = fed(
        noise,
        parts,
        layerwise(build(method), blocks, 1, budget),
        rounds=len(blocks),
        clients_per_round=2,
        engine=engine,
        workers=1,
        **METHODS[method],
    )
    assert (vector(got.model()) - vector(expected)).abs().max() < 1e-10


def test_depth_dropout_alone_equals_a_plain_loop(noise, parts):
    method = layerwise(simclr(TAU), phases(DEPTH, active=DEPTH), 1, budget=2, seed=1)
    drawn = [stage(method, t, DEPTH)["running"] for t in range(4)]
    assert len(set(drawn)) > 1
    expected = plain_loop(noise, parts, phases(DEPTH, active=DEPTH), 1, 4, drawn.__getitem__, K=3, local_steps=2)
    for engine in ("clients", "stacked"):
        got = fed(noise, parts, method, rounds=4, local_steps=2, engine=engine)
        assert (vector(got.model()) - vector(expected)).abs().max() < 1e-10


@pytest.mark.parametrize("engine", ["clients", "stacked"])
def test_any_number_of_workers_gives_the_same_bits(noise, parts, engine, monkeypatch):
    monkeypatch.setattr(simulate, "cores", lambda: 2)
    method = layerwise(simclr(), phases(DEPTH), 1, budget=2)
    one, two = (
        fed(
            noise,
            parts,
            method,
            rounds=DEPTH,
            engine=engine,
            workers=workers,
            precision="float32",
            chunk=1,
            weight_decay=0.1,
        )
        for workers in (1, 2)
    )
    assert torch.equal(vector(one.model()), vector(two.model())) and one.history.equals(two.history)


# --- what stands still, what is not there, what is sent ---


@pytest.fixture
def watched(monkeypatch) -> list[dict]:
    """For each round: the global vector before and after it, and how often each block was called in training."""
    seen, forward, step = [], models.PreNormBlock.forward, simulate.Simulation.step

    def counted(self, x):
        if self.training and seen:  # not when the network is asked beforehand
            seen[-1]["calls"][self.number] += 1
        return forward(self, x)

    def watched_step(self):
        seen.append({"calls": Counter(), "before": self.server.w[0].clone()})
        step(self)
        seen[-1]["after"] = self.server.w[0].clone()

    monkeypatch.setattr(models.PreNormBlock, "forward", counted)
    monkeypatch.setattr(simulate.Simulation, "step", watched_step)
    return seen


def at_places(row: torch.Tensor) -> dict[object, torch.Tensor]:
    net = start().to(row.dtype)
    nn.utils.vector_to_parameters(row, net.parameters())
    return by_place(net)


@pytest.mark.heavy
@pytest.mark.parametrize("engine", ["clients", "stacked"])
@pytest.mark.parametrize("method", METHODS)
def test_frozen_parameters_stand_still_to_the_bit_and_dropped_blocks_are_not_called(
    noise, parts, watched, method, engine
):
    fed(
        noise,
        parts,
        layerwise(build(method), phases(DEPTH), 2, budget=2),
        rounds=2 * DEPTH,
        local_epochs=1,
        engine=engine,
        chunk=len(parts),
        precision="float32",
        workers=1,
        **METHODS[method],
    )
    steps = sum(math.ceil(n / BATCH) for n in SIZES)
    for t, seen in enumerate(watched):
        s = t // 2 + 1
        before, after = at_places(seen["before"]), at_places(seen["after"])
        moved = {place for place in before if not torch.equal(before[place], after[place])}
        assert moved == ({"patches", 1, "head"} if s == 1 else {s, "head"})
        assert set(seen["calls"]) == {1, s}
        if engine == "clients":
            assert set(seen["calls"].values()) == {steps}


def test_frozen_blocks_run_without_a_graph_and_dropped_ones_get_no_gradient():
    net, method = start(), layerwise(simclr(), phases(DEPTH), 1, budget=3, seed=2)
    method.travels(net.train(), DEPTH - 1)
    graph = {}
    for block in net.body.blocks:
        block.register_forward_hook(lambda block, _, out: graph.update({block.number: out.requires_grad}))
    nt_xent(net, torch.rand(4, *SHAPE), None, {"tau": 0.5}).backward()
    assert list(graph) == list(net.body.running) and len(graph) == 3
    assert [block for block, has_graph in graph.items() if has_graph] == [DEPTH]
    assert {
        name.split(".")[2] if "blocks" in name else name.split(".")[0]
        for name, p in net.named_parameters()
        if p.grad is not None
    } == {str(DEPTH - 1), "head"}


@pytest.mark.parametrize("budget", [None, 2, 3])
def test_bytes_are_the_closed_forms(noise, parts, budget):
    """Of L blocks k = min(s, B) go down and one comes up, against L and L end to end."""
    K, sizes = 2, {place: len(weights) for place, weights in by_place(start()).items()}
    beta = 4 * K * sizes[1]

    def blocks_sent(method, rounds):
        history = fed(noise, parts, method, rounds=rounds, clients_per_round=K, local_steps=1).history
        first = np.arange(1, rounds + 1) == 1 if method.settings["plan"].count("|") else np.ones(rounds, bool)
        rest = 4 * K * (sizes["patches"] + sizes["head"])
        up = np.where(first, rest, 4 * K * sizes["head"])  # the patches learn with block 1
        return (history["bytes_down"] - rest).to_numpy(), (history["bytes_up"] - up).to_numpy()

    down, up = blocks_sent(layerwise(simclr(), phases(DEPTH), 1, budget), DEPTH)
    k = np.minimum(np.arange(1, DEPTH + 1), budget or DEPTH)
    assert down.tolist() == (k * beta).tolist() and up.tolist() == [beta] * DEPTH
    whole = blocks_sent(layerwise(simclr(), phases(DEPTH, active=DEPTH), DEPTH), DEPTH)
    assert whole[0].tolist() == whole[1].tolist() == [DEPTH * beta] * DEPTH
    np.testing.assert_array_equal((down + up) / (whole[0] + whole[1]), (k + 1) / (2 * DEPTH))


def test_methods_that_freeze_nothing_send_as_much_each_way(noise, parts):
    history = fed(noise, parts, simclr(), rounds=1, local_steps=1).history
    assert history["bytes_up"].tolist() == history["bytes_down"].tolist() == [4 * len(parts) * len(vector(start()))]
    assert history["accuracy"].isna().all() and history["loss"].notna().all()


def test_a_network_given_with_frozen_parameters_keeps_them(noise, parts):
    """Without phases, too; weight decay does not move them either."""
    net = start()
    net.body.patches.requires_grad_(False)
    for engine in ("clients", "stacked"):
        got = fed(noise, parts, simclr(), make=net, engine=engine, weight_decay=0.1, precision="float32").model()
        before, after = by_place(net), by_place(got)
        assert {place for place in before if torch.equal(before[place], after[place])} == {"patches"}


def test_a_stage_keeps_its_mask_where_a_recording_reads_it(noise):
    trainer = cohort.Trainer(encoder(), nt_xent, images=noise.x_train, labels=noise.y_train)
    stages = cohort.Stages(encoder(), layerwise(simclr(), phases(DEPTH), 2).travels)
    trainer.enter(stages(2))
    mask, key = trainer.frozen, trainer.key
    assert mask.dtype == torch.bool and mask.any() and not mask.all()
    trainer.enter(stages(3))
    assert trainer.frozen is mask and trainer.key == key
    trainer.enter(stages(4))
    assert trainer.key != key and not torch.equal(trainer.frozen, mask)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("engine", ["clients", "stacked"])
def test_a_gpu_gives_what_a_cpu_gives(noise, parts, engine):
    """Rounds of equal batches, four in each phase, so that a graph is captured and replayed in each."""
    options = {"rounds": 16, "local_steps": 2, "batch_size": 4, "weight_decay": 0.1, "engine": engine, "chunk": 2}
    method = layerwise(simclr(), phases(DEPTH), 4, budget=2)
    on_cpu, on_gpu = (fed(noise, parts, method, device=device, **options) for device in ("cpu", "cuda"))
    assert (vector(on_gpu.model()) - vector(on_cpu.model())).abs().max() < 1e-10


# --- which blocks run and learn ---


class Stack(nn.Module):
    """A network that only has what phases are about: blocks of one weight each."""

    def __init__(self, depth: int):
        super().__init__()
        self.body = models.BlockBody(nn.Linear(1, 1), [nn.Linear(1, 1, bias=False) for _ in range(depth)])
        self.head = nn.Linear(1, 1)


def stage(method, t: int, depth: int, net: nn.Module | None = None) -> dict:
    """What round t does: blocks that run, blocks that learn, blocks that are not sent, where the network ends."""
    net = net or Stack(depth)
    absent = method.travels(net, t).absent
    numbers = {f"body.blocks.{i}.weight": i + 1 for i in range(depth)}
    learning = {i + 1 for i, block in enumerate(net.body.blocks) if all(p.requires_grad for p in block.parameters())}
    assert all(p.requires_grad for p in net.head.parameters())
    return {
        "running": net.body.running,
        "learning": learning,
        "grown": net.body.grown,
        "absent": {numbers[name] for name in absent},
        "patches": all(p.requires_grad for p in net.body.patches.parameters()),
    }


plans = st.integers(1, 8).flatmap(
    lambda depth: st.sampled_from([a for a in range(1, depth + 1) if depth % a == 0]).map(
        lambda active: (depth, active)
    )
)


@settings(max_examples=40, derandomize=True, deadline=None)
@given(shape=plans, progressive=st.booleans(), rounds=st.integers(1, 3), seed=st.integers(0, 9), share=st.floats(0, 1))
def test_which_blocks_run_and_learn(shape, progressive, rounds, seed, share):
    """For any depth, blocks per phase and budget: who learns, who is sent, who is never left out."""
    depth, active = shape
    plan = phases(depth, active, progressive)
    least = max(2, active + 1 if len(plan) > 1 else 1)
    budget = None if least > depth else round(least + share * (depth - least))
    method, alone, net = layerwise(simclr(), plan, rounds, budget, seed), len(plan) == 1, Stack(depth)
    for t in range(rounds * len(plan) + 2):
        s = min(t // rounds, len(plan) - 1)
        present = active * (s + 1)
        new = set(range(present - active + 1, present + 1))
        now = stage(method, t, depth, net)
        running = set(now["running"])
        assert now["grown"] == present and list(now["running"]) == sorted(running)
        assert len(running) == min(present, budget or depth)
        assert 1 in running and running <= set(range(1, present + 1)) and (alone or new <= running)
        assert now["learning"] == running & (set(range(1, present + 1)) if progressive else new)
        assert now["absent"] == set(range(1, depth + 1)) - running
        assert now["patches"] == (progressive or s == 0)


@pytest.mark.parametrize(
    "plan, budget, t, droppable",
    [
        (phases(6), 3, 5, {2, 3, 4, 5}),
        (phases(6, active=2), 4, 2, {2, 3, 4}),
        (phases(6, progressive=True), 3, 5, {2, 3, 4, 5}),
        (phases(6, active=6), 3, 0, {2, 3, 4, 5, 6}),
    ],
)
def test_every_older_block_is_left_out_sometimes_and_evenly(plan, budget, t, droppable):
    method, left_out, draws = layerwise(simclr(), plan, 1000, budget), Counter(), 400
    for draw in range(draws):
        left_out.update(stage(method, 1000 * t + draw, 6)["absent"])
    assert set(left_out) == droppable
    share = (6 - budget) / len(droppable)
    assert all(abs(count / draws - share) < 5 * math.sqrt(share * (1 - share) / draws) for count in left_out.values())


def test_what_is_left_out_is_a_function_of_seed_and_round():
    plan, order = phases(6), np.random.default_rng(0).permutation(60)
    drawn = {
        seed: [stage(layerwise(simclr(), plan, 5, 3, seed), t, 6)["running"] for t in range(60)] for seed in (0, 1)
    }
    again, net = layerwise(simclr(0.1), plan, 5, 3, seed=1), Stack(6)
    assert {t: stage(again, t, 6, net)["running"] for t in order} == dict(enumerate(drawn[1]))
    assert drawn[0] != drawn[1] and len(set(drawn[0][30:])) > 3


def test_phases():
    assert phases(3) == [[1], [2], [3]] and phases(4, active=2) == [[1, 2], [3, 4]]
    assert phases(3, progressive=True) == [[1], [1, 2], [1, 2, 3]]
    assert phases(3, active=3) == phases(3, active=3, progressive=True) == [[1, 2, 3]]
    mixed = layerwise(simclr(), [[1, 2], [2, 3]], 1)  # an older block may learn on
    assert [stage(mixed, t, 3)["learning"] for t in (0, 1)] == [{1, 2}, {2, 3}]


# --- interruptions and sweeps ---


@pytest.mark.heavy
@pytest.mark.parametrize("plan, budget", [(phases(DEPTH), 3), (phases(DEPTH, active=DEPTH), 2)])
def test_a_run_that_stops_within_a_phase_continues_bit_for_bit(noise, parts, tmp_path, plan, budget):
    method = layerwise(build("fedavgm"), plan, 3, budget)
    options = {"precision": "float32", "checkpoint": tmp_path / "run.pt", "clients_per_round": 2}
    whole = fed(noise, parts, method, rounds=12, **{**options, "checkpoint": None})
    early = fed(noise, parts, method, rounds=10, **options)
    read = fed(noise, parts, method, rounds=10, **options)  # finished: no round is trained
    assert torch.equal(vector(read.model()), vector(early.model()))
    assert read.model().body.grown == early.model().body.grown
    got = fed(noise, parts, method, rounds=12, **options)
    assert torch.equal(vector(got.model()), vector(whole.model()))
    pd.testing.assert_frame_equal(got.history, whole.history, check_exact=True)


def test_a_finished_checkpoint_gives_the_network_of_its_phase(noise, parts, tmp_path):
    method, x = layerwise(simclr(), phases(DEPTH), 2, budget=2), torch.rand(3, *SHAPE, dtype=torch.float64)
    early, read = (fed(noise, parts, method, rounds=5, checkpoint=tmp_path / "run.pt").model() for _ in range(2))
    assert (early.body.grown, read.body.grown) == (3, 3)
    torch.testing.assert_close(read(x), early(x), rtol=0, atol=0)


def test_a_sweep_gives_what_separate_runs_give(noise, parts):
    """Cohorts of unequal clients differ between seeds in their number of steps and in their largest batch."""
    method = layerwise(simclr(), phases(DEPTH), 1, budget=2)
    options = {
        "rounds": DEPTH,
        "batch_size": 8,
        "local_epochs": 2,
        "clients_per_round": 1,
        "precision": "float64",
        "progress": False,
        "device": "cpu",
        "evaluate_every": 1,
    }
    axes = {"lr": [0.1, 0.3], "weight_decay": [0.0, 0.1], "seed": [0, 1, 2]}
    together = simulate.sweep(encoder, noise, parts, method, engine="stacked", chunk=5, **axes, **options)
    assert len(together) == 12
    for run in together[::5]:
        alone = simulate.run(
            encoder, noise, parts, method, engine="clients", **{name: run.config[name] for name in axes}, **options
        )
        assert (vector(run.model()) - vector(alone.model())).abs().max() < 1e-10
        pd.testing.assert_frame_equal(run.history, alone.history, rtol=1e-9)


# --- the network that comes out ---


@pytest.mark.parametrize("rounds, grown", [(1, 1), (3, 2), (6, 3), (8, 4), (9, 4)])
def test_the_model_of_an_unfinished_run_ends_at_the_newest_block(noise, parts, rounds, grown):
    """With all its blocks back, whatever the last round left out, and free to learn."""
    model = fed(noise, parts, layerwise(simclr(), phases(DEPTH), 2, budget=2), rounds=rounds, local_steps=1).model()
    assert not model.training and all(p.requires_grad for p in model.parameters())
    x = torch.rand(3, *SHAPE, dtype=torch.float64)
    h = model.body.patches(x)
    for block in model.body.blocks[:grown]:
        h = block(h)
    torch.testing.assert_close(model(x), model.head(h.mean(1)), rtol=0, atol=0)
    untouched = start().double()
    assert [
        torch.equal(vector(a), vector(b)) for a, b in zip(model.body.blocks, untouched.body.blocks, strict=True)
    ] == [b > grown for b in range(1, DEPTH + 1)]


def test_dropout_can_be_drawn_once_a_phase():
    rounds, depth = 7, 8

    def left_out(every):
        method = layerwise(simclr(), phases(depth), rounds, budget=3, every=every)
        return [stage(method, t, depth)["running"] for t in range(rounds * depth)]

    each, once = left_out(1), left_out(rounds)
    assert [len({*once[start : start + rounds]}) for start in range(0, rounds * depth, rounds)] == [1] * depth
    assert once[::rounds] == each[::rounds] and len({*each[-rounds:]}) > 1
    assert len({*once[::rounds]}) == depth
    assert layerwise(simclr(), phases(3), 2, budget=2, every=1).settings.keys().isdisjoint({"dropout_every"})
    with pytest.raises(ValueError, match="every must be a whole number"):
        layerwise(simclr(), phases(3), 2, budget=2, every=0)


def test_after_depth_dropout_alone_the_last_blocks_are_back(noise, parts):
    """With labels, so that the history shows it: the accuracy is that of the whole network."""
    method = layerwise(algorithms.fedavg(), phases(DEPTH, active=DEPTH), 1, budget=2)
    t = next(t for t in range(20) if DEPTH not in stage(method, t, DEPTH)["running"])
    run = fed(
        noise,
        parts,
        method,
        make=lambda: models.vit_tiny(SHAPE, 3, width=8, depth=DEPTH, heads=2),
        rounds=t + 1,
        local_steps=1,
    )
    model, x = run.model(), noise.x_test.double() / 255
    h = model.body.patches(x)
    for block in model.body.blocks:
        h = block(h)
    logits = model.head(model.body.norm(h).mean(1))
    torch.testing.assert_close(model(x), logits, rtol=0, atol=0)
    assert run.accuracy == pytest.approx((logits.argmax(1) == noise.y_test).double().mean().item())


def test_the_callers_network_is_left_as_it_was(noise, parts):
    net = start().double()
    before = vector(net).clone()
    fed(noise, parts, layerwise(simclr(), phases(DEPTH), 2, budget=2), make=lambda: net, local_steps=1)
    assert net.body.grown == DEPTH and net.body.running == (1, 2, 3, 4) and torch.equal(vector(net), before)
    assert all(p.requires_grad for p in net.parameters())


# --- bad input ---


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: phases(6, active=4), "active must divide the depth 6, got 4"),
        (lambda: phases(6, active=0), "active must divide the depth 6, got 0"),
        (lambda: layerwise(simclr(), [], 1), "plan must have at least one phase, got none"),
        (lambda: layerwise(simclr(), [[1], [3]], 1), "plan must go on with block 2 in phase 2 and skip none, got [3]"),
        (lambda: layerwise(simclr(), [[1, 3]], 1), "plan must go on with block 1 in phase 1 and skip none, got [1, 3]"),
        (lambda: layerwise(simclr(), [[2], [1]], 1), "plan must go on with block 1 in phase 1 and skip none, got [2]"),
        (lambda: layerwise(simclr(), [[1], [1]], 1), "plan must go on with block 2 in phase 2 and skip none, got [1]"),
        (lambda: layerwise(simclr(), [[1], []], 1), "plan must go on with block 2 in phase 2 and skip none, got []"),
        (lambda: layerwise(simclr(), [[0, 1]], 1), "plan must go on with block 1 in phase 1 and skip none, got [0, 1]"),
        (lambda: layerwise(simclr(), phases(4), 0), "rounds must be a whole number of at least 1, got 0"),
        (lambda: layerwise(simclr(), phases(4), 2.5), "rounds must be a whole number of at least 1, got 2.5"),
        (lambda: layerwise(simclr(), phases(4), True), "rounds must be a whole number of at least 1, got True"),
        (lambda: layerwise(simclr(), phases(4), 1, seed=-1), "seed must be a whole number of at least 0, got -1"),
        (
            lambda: layerwise(simclr(), phases(4), 1, 1),
            "number of blocks from 2 (block 1 and the newest always run) to the depth 4, got 1",
        ),
        (lambda: layerwise(simclr(), phases(4), 1, 5), "to the depth 4, got 5"),
        (lambda: layerwise(simclr(), phases(4), 1, 2.5), "to the depth 4, got 2.5"),
        (lambda: layerwise(simclr(), phases(4, active=2), 1, 2), "budget must be a number of blocks from 3 "),
        (lambda: layerwise(simclr(), phases(4, active=4), 1, 1), "budget must be a number of blocks from 2 "),
        (lambda: layerwise(layerwise(simclr(), phases(4), 1), phases(4), 1), "got 'SimCLR, layer-wise'"),
        (lambda: layerwise(algorithms.fixbn(after=1), phases(4), 1), "must not prepare its rounds itself, got 'FixBN'"),
        (lambda: simclr(tau=0), "tau must be a positive finite number, got 0"),
        (lambda: simclr(tau=math.nan), "tau must be a positive finite number, got nan"),
        (lambda: simclr(smallest=0), "smallest must lie in (0, 1], got 0"),
        (lambda: simclr(smallest=1.5), "smallest must lie in (0, 1], got 1.5"),
        (lambda: simclr(colour=-0.1), "colour must lie in [0, 1], got -0.1"),
    ],
)
def test_bad_settings_are_refused(make, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        make()


def test_a_base_that_is_no_algorithm_is_refused():
    with pytest.raises(TypeError, match=re.escape("base must be an Algorithm, such as fedavg(); got <function simclr")):
        layerwise(simclr, phases(4), 1)


@pytest.mark.parametrize("make, there", [(lambda: encoder(3), "3"), (lambda: models.mlp(SHAPE, 6, hidden=(4,)), "no")])
def test_a_network_that_does_not_fit_the_plan_is_refused(noise, parts, make, there):
    with pytest.raises(ValueError, match=rf"the plan is for 4 blocks, but the network has {there} blocks .*depth=4"):
        fed(noise, parts, layerwise(simclr(), phases(4), 1), make=make)


@pytest.mark.parametrize(
    "options, lone",
    [({"batch_size": 1}, "0, 1, 2"), ({"batch_size": 3}, "1, 2"), ({"batch_size": 1, "local_steps": 1}, "0, 1, 2")],
)
def test_batches_of_one_image_are_refused(noise, parts, options, lone):
    """Of a batch size of 1, and of an epoch that leaves one image over."""
    message = f"'SimCLR' compares .* with batch_size {options['batch_size']} client(s) {lone} would .* at least 2"
    with pytest.raises(ValueError, match=message.replace("(s)", r"\(s\)")):
        fed(noise, parts, simclr(), **options)
    fed(noise, parts, simclr(), batch_size=3, local_steps=1)  # steps take full batches


def test_a_client_with_one_image_is_refused(noise, parts):
    for work in ({"local_steps": 1}, {"local_epochs": 1}):
        with pytest.raises(ValueError, match=r"client\(s\) 1 would have a batch of one image"):
            fed(noise, [parts[0], parts[1][:1], parts[2]], simclr(), **work)


def test_a_text_has_no_views():
    text = texts.from_texts("letters", {"Ann": "abcab" * 30}, length=6)
    with pytest.raises(ValueError, match="'SimCLR' distorts images, but 'letters' is a text"):
        fed(text, [torch.arange(9)], simclr(), make=lambda: models.small_char_transformer((6,), 3))
