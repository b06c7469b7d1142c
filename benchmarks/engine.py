"""fedlib against a plain sequential PyTorch loop: the same work, interleaved, in one process.

    python benchmarks/engine.py [--repeats 9] [--rounds 10] [--device cpu] [--json FILE]

Work: 10 clients of 100 CIFAR-shaped images, one local epoch in batches of 20, SGD with learning rate 0.05, FedAvg by
size; every client takes part in every round. The loop is what one writes first: a network of conv, ReLU and pooling in
that order, float images stored N,C,H,W, one `torch.optim.SGD` a client, a weighted sum of state dicts. All train on the
same images in the same order, and a check in float64 compares their final weights before anything is timed.

Part of the lead comes from two things that any loop could do: fedlib pools before the ReLU, which is the same function,
and stores images N,H,W,C. "tuned loop" is the plain loop with both.
"""

import argparse
import copy
import json
import platform
import statistics
import time

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

import fedlib as fl

CLIENTS, IMAGES, BATCH, LR = 10, 100, 20, 0.05
NETWORKS = {"small CNN": fl.models.small_cnn, "LEAF CNN": fl.models.leaf_cnn}


def textbook(name: str) -> nn.Module:
    """The same network as one writes it without fedlib; its parameters come in the same order."""
    kernel, first, hidden = (3, 16, 64) if name == "small CNN" else (5, 32, 512)
    return nn.Sequential(nn.Conv2d(3, first, kernel, padding=kernel // 2), nn.ReLU(), nn.MaxPool2d(2),
                         nn.Conv2d(first, 2 * first, kernel, padding=kernel // 2), nn.ReLU(), nn.MaxPool2d(2),
                         nn.Flatten(), nn.Linear(2 * first * 64, hidden), nn.ReLU(), nn.Linear(hidden, 10))


def synthetic() -> tuple[fl.data.Data, list[torch.Tensor]]:
    rng = np.random.default_rng(0)
    x = rng.integers(0, 256, (CLIENTS * IMAGES, 32, 32, 3), dtype=np.uint8)
    y = rng.integers(0, 10, CLIENTS * IMAGES)
    data = fl.data.from_arrays("synthetic", x, y, x[:20], y[:20], classes=[str(c) for c in range(10)])
    return data, list(torch.arange(CLIENTS * IMAGES).split(IMAGES))


def plain(start: nn.Module, images: torch.Tensor, labels: torch.Tensor, parts: list,
          rounds: int) -> nn.Module:
    """FedAvg, one client after the other. images: float (N, 3, 32, 32) in [0, 1]."""
    server = copy.deepcopy(start)
    client = copy.deepcopy(start)
    for t in range(rounds):
        rng = np.random.default_rng([0, t])
        mean = {name: torch.zeros_like(v) for name, v in server.state_dict().items()}
        for part in parts:
            client.load_state_dict(server.state_dict())
            optimiser = torch.optim.SGD(client.parameters(), lr=LR)
            for batch in fl.simulate.local_batches(rng, part.numpy(), BATCH, local_epochs=1):
                batch = torch.from_numpy(batch).to(images.device)
                loss = F.cross_entropy(client(images[batch]), labels[batch])
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
            for name, v in client.state_dict().items():
                mean[name] += v / len(parts)
        server.load_state_dict(mean)
    return server


def ours(start: nn.Module, data: fl.data.Data, parts: list, rounds: int, **options) -> fl.Run:
    return fl.run(start, data, parts, rounds=rounds, lr=LR, batch_size=BATCH, local_epochs=1, evaluate_every=rounds,
                  progress=False, **options)


def timed(work, device: str) -> float:
    if device == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    work()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def check(loop: nn.Module, start: nn.Module, data: fl.data.Data, parts: list, device: str) -> float:
    """Largest difference between the final weights of the two, relative to the largest weight, in float64."""
    loop, start = copy.deepcopy(loop).double(), copy.deepcopy(start).double()
    theirs = plain(loop.to(device), (data.x_train.double() / 255).to(device), data.y_train.to(device), parts, 2).cpu()
    mine = ours(start, data, parts, 2, precision="float64", device=device).model()
    a, b = (nn.utils.parameters_to_vector(m.parameters()).detach() for m in (theirs, mine))
    return ((a - b).abs().max() / a.abs().max()).item()


def measure(name: str, repeats: int, rounds: int, device: str) -> dict:
    data, parts = synthetic()
    torch.manual_seed(0)
    start, loop = NETWORKS[name](data.shape, 10), textbook(name)
    nn.utils.vector_to_parameters(nn.utils.parameters_to_vector(start.parameters()), loop.parameters())
    difference = check(loop, start, data, parts, device)
    last = (data.x_train.float() / 255).to(device)  # channels-last, as fedlib stores images
    first, labels = last.contiguous(), data.y_train.to(device)
    loop, tuned = loop.to(device), copy.deepcopy(start).to(device)
    contestants = {
        "plain loop": lambda: plain(loop, first, labels, parts, rounds),
        "tuned loop": lambda: plain(tuned, last, labels, parts, rounds),
        "fedlib": lambda: ours(start, data, parts, rounds, device=device),
    }
    seconds = {who: [] for who in contestants}
    for work in contestants.values():  # warm up
        work()
    for _ in range(repeats):
        for who, work in contestants.items():
            seconds[who].append(timed(work, device) / rounds)
    ratios = {who: [p / f for p, f in zip(seconds[who], seconds["fedlib"], strict=True)] for who in contestants}
    return {"network": name, "float64 difference": difference, "seconds per round": seconds, "ratios": ratios}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", choices=("cpu", "cuda"))
    parser.add_argument("--json", help="write the figures to this file")
    options = parser.parse_args()
    machine = torch.cuda.get_device_name() if options.device == "cuda" else f"{platform.machine()} CPU"
    print(f"{machine}, {torch.get_num_threads()} intra-op threads for the loops, torch {torch.__version__}")
    print(f"{CLIENTS} clients x {IMAGES} images, batch {BATCH}, {options.repeats} repeats of {options.rounds} rounds")
    print("medians; ratio: how many times faster fedlib is, median (smallest to largest) over the repeats")
    results = [measure(name, options.repeats, options.rounds, options.device) for name in NETWORKS]
    for r in results:
        print(f"{r['network']}; final weights in float64 differ by at most {r['float64 difference']:.1e}, relative")
        for who, seconds in r["seconds per round"].items():
            ratios = r["ratios"][who]
            print(f"  {who:10} {1e3 * statistics.median(seconds):8.1f} ms a round   "
                  f"{statistics.median(ratios):5.2f} ({min(ratios):.2f} to {max(ratios):.2f})")
    if options.json:
        with open(options.json, "w") as file:
            json.dump({"machine": machine, "torch": torch.__version__, "results": results}, file, indent=1)


if __name__ == "__main__":
    main()
