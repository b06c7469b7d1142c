"""The federation that trains on the page gives the library's numbers, in a real browser."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from browsing import in_browser

import fedlib as fl

SCRIPT = Path(__file__).resolve().parents[1] / "book" / "_static" / "federation.js"
ROUNDS, STEPS, BATCH = 5, 4, 16
A = fl.algorithms

pytestmark = in_browser

NORMS = ("none", "layer", "feature", "batch", "ln-g")
# the page's name of a method -> ours, its settings there, and what differs in the simulation
METHODS = {
    "FedAvg": (A.fedavg, {}, {}),
    "FedAvg, clipped and decayed": (A.fedavg, {"radius": 0.5, "lambda": 0.1}, {"clip": [0.5], "weight_decay": [0.1]}),
    "FedProx": (lambda: A.fedprox(0.3), {"mu": 0.3}, {}),
    "SCAFFOLD": (A.scaffold, {}, {}),
    "FedAvgM": (A.fedavgm, {"momentum": 0.9}, {}),
    "FedNAR": (lambda: A.fednar(A.fedavg()), {"radius": 0.5, "lambda": 0.1}, {"clip": [0.5], "weight_decay": [0.1]}),
}
RUN = """(given) => {
  const {rounds, ...options} = given;
  const one = Federation.federation({...options, x: Float64Array.from(options.x)});
  const fine = rounds.map(({clients, batches}) => one.round(clients, batches));
  return {fine, w: [...one.server.w], b: [...one.server.b],
          classes: one.predict(Float64Array.from(options.x).subarray(0, 640))};
}"""


@pytest.fixture(scope="module")
def page(browser):
    page = browser.new_page()
    page.add_script_tag(path=SCRIPT)
    return page


@pytest.fixture(scope="module")
def digits():
    return fl.data.some(fl.data.load("digits"), 240, 60)


def simulated(data, norm, algorithm, differs, seed=3):
    """Ours, on six unequal clients of which four train in a round; and what the page is given of it.

    Groups of eight and a small rate: where ReLU leaves a small group nearly constant, LN-G divides by next to nothing,
    and a change of 1e-15 in a weight grows to 1e-3 in five rounds of the library itself.
    Batches of sixteen, as the page has: the fewer images, the smaller a deviation that batch norm may divide by.
    """
    parts = fl.partition.dirichlet(data.y_train, 6, 0.5, seed=1)
    sim = fl.Simulation(
        lambda: fl.models.mlp(data.shape, data.num_classes, norm=norm, hidden=[24, 16]),
        data, parts, algorithm, lr=[0.05], seed=[seed], batch_size=BATCH, local_steps=STEPS, clients_per_round=4,
        precision="float64", normalise=True, device="cpu", **differs,
    )  # fmt: skip
    x = fl.data.prepare(data.x_train, data.mean, data.std, dtype=torch.float64).flatten(1)
    given = {
        "net": {"sizes": [64, 24, 16, 10], "norm": norm, "groups": 2},
        "x": x.flatten().tolist(), "y": data.y_train.tolist(), "parts": [part.tolist() for part in parts],
        "w": sim.server.w[0].tolist(), "b": sim.server.buffers[0].tolist(), "lr": 0.05,
        "rounds": [drawn(sim.schedule, seed, t) for t in range(ROUNDS)],
    }  # fmt: skip
    for _ in range(ROUNDS):
        sim.step()
    return sim, given


def drawn(schedule, seed, t):
    clients = schedule.cohort(seed, t).tolist()
    turns = [schedule.turn(seed, t, k) for k in clients]
    return {
        "clients": clients,
        "batches": [
            [batch[:size].tolist() for batch, size in zip(turn.index, turn.size, strict=True)] for turn in turns
        ],
    }


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("method", METHODS)
def test_five_rounds_give_the_librarys_weights(page, digits, norm, method):
    algorithm, settings, differs = METHODS[method]
    sim, given = simulated(digits, norm, algorithm(), differs)
    found = page.evaluate(RUN, {**given, "method": method.partition(",")[0], "settings": settings})
    assert all(found["fine"])
    moved = np.abs(np.array(given["w"]) - sim.server.w[0].numpy()).max()
    assert moved > 1e-3
    np.testing.assert_allclose(found["w"], sim.server.w[0].numpy(), rtol=0, atol=1e-10)
    np.testing.assert_allclose(found["b"], sim.server.buffers[0].numpy(), rtol=0, atol=1e-10)
    net = sim.runs()[0].model().double().eval()
    x = torch.tensor(given["x"], dtype=torch.float64).view(-1, 1, 8, 8)[:10]
    assert found["classes"] == net(x).argmax(1).tolist()


@pytest.mark.parametrize("steps", [1, 2, 5])
def test_a_merge_after_any_number_of_steps_is_a_round_of_that_many(page, digits, steps):
    _, given = simulated(digits, "layer", A.fedavg(), {})
    given["rounds"] = []
    part = given["parts"]
    batches = [[[p[i % len(p)]] for i in range(steps)] for p in part]
    both = page.evaluate(
        """({given, batches}) => {
          const make = () => Federation.federation({...given, x: Float64Array.from(given.x)});
          const [round, apart] = [make(), make()];
          const all = batches.map((_, k) => k);
          round.round(all, batches);
          const locals = apart.begin(all);
          for (let t = 0; t < batches[0].length; t++) locals.forEach((one, k) => apart.stepOf(one, batches[k][t]));
          apart.merge();
          return [[...round.server.w], [...apart.server.w]];
        }""",
        {"given": given, "batches": batches},
    )
    assert both[0] == both[1]


def test_a_round_that_is_not_finite_is_not_used(page, digits):
    _, given = simulated(digits, "none", A.fedavg(), {})
    given |= {"lr": 1e200, "rounds": given["rounds"][:2]}
    found = page.evaluate(RUN, given)
    assert found["fine"] == [False, False] and found["w"] == given["w"]


def test_clients_without_images_or_steps_are_left_out(page, digits):
    _, given = simulated(digits, "none", A.scaffold(), {})
    given["rounds"] = []
    one = """({given, batches}) => {
      const one = Federation.federation({...given, x: Float64Array.from(given.x), method: "SCAFFOLD"});
      one.round(batches.map((_, k) => k), batches);
      return [...one.server.w];
    }"""
    batches = [[part[:4]] for part in given["parts"]]
    alone = page.evaluate(one, {"given": given, "batches": [batches[0]]})
    assert page.evaluate(one, {"given": given, "batches": [batches[0], []]}) == alone
    assert page.evaluate(one, {"given": given, "batches": [[], []]}) == given["w"]


def test_the_pages_own_draws(page):
    found = page.evaluate(
        """() => {
          const {generator, batches, initial} = Federation;
          const same = [1, 1, 2].map((seed) => { const next = generator(seed); return [next(), next(), next()]; });
          const part = Array.from({length: 10}, (_, i) => 100 + i);
          const start = initial({sizes: [64, 32, 10], norm: "batch"}, generator(5));
          return {same, five: batches(part, 4, 5, generator(7)), few: batches([8, 9], 4, 3, generator(7)),
                  none: batches([], 4, 3, generator(7)), w: [...start.w], b: [...start.b]};
        }"""
    )
    assert found["same"][0] == found["same"][1] != found["same"][2]
    assert all(0 <= value < 1 for value in found["same"][0])
    assert [len(batch) for batch in found["five"]] == [4] * 5 and len({*sum(found["five"][:2], [])}) == 8
    assert [sorted(batch) for batch in found["few"]] == [[8, 9]] * 3 and found["none"] == []
    w = np.array(found["w"])
    first, norm, head = np.split(w, [2048, 2112])
    assert np.abs(first).max() <= 1 / 8 and np.abs(head).max() <= 1 / math.sqrt(32)
    assert first.std() == pytest.approx(1 / 8 / math.sqrt(3), rel=0.05)
    assert norm.tolist() == [1.0] * 32 + [0.0] * 32 and found["b"] == [0.0] * 32 + [1.0] * 32


def test_the_engine_is_short_enough_to_read():
    assert len(SCRIPT.read_text(encoding="utf-8").splitlines()) <= 400
