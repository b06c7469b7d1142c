"""fedlib against a plain sequential PyTorch loop: the same work, interleaved, in one process.

    python benchmarks/engine.py [--repeats 9] [--rounds 10] [--device cpu] [--json FILE]

Work: 10 clients of 100 CIFAR-shaped images, one local epoch in batches of 20, SGD with learning rate 0.05, FedAvg by
size; every client takes part in every round. The loop is what one writes first: float images, one model, one
`torch.optim.SGD` a client, a weighted sum of state dicts. Both train on the same images in the same order, and a check
in float64 compares their final weights before anything is timed.
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

import fedlib as fl

CLIENTS, IMAGES, BATCH, LR = 10, 100, 20, 0.05
NETWORKS = {"small CNN": fl.models.small_cnn, "LEAF CNN": fl.models.leaf_cnn}


def synthetic() -> tuple[fl.data.Data, list[torch.Tensor]]:
    rng = np.random.default_rng(0)
    x = rng.integers(0, 256, (CLIENTS * IMAGES, 32, 32, 3), dtype=np.uint8)
    y = rng.integers(0, 10, CLIENTS * IMAGES)
    data = fl.data.from_arrays("synthetic", x, y, x[:20], y[:20], classes=[str(c) for c in range(10)])
    return data, list(torch.arange(CLIENTS * IMAGES).split(IMAGES))


def plain(start: torch.nn.Module, images: torch.Tensor, labels: torch.Tensor, parts: list,
          rounds: int) -> torch.nn.Module:
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


def ours(start: torch.nn.Module, data: fl.data.Data, parts: list, rounds: int, **options) -> fl.Run:
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


def check(make, data: fl.data.Data, parts: list, device: str) -> float:
    """Largest difference between the final weights of the two, relative to the largest weight, in float64."""
    start = make().double()
    theirs = plain(start.to(device), (data.x_train.double() / 255).to(device), data.y_train.to(device), parts, 2).cpu()
    mine = ours(start, data, parts, 2, precision="float64", device=device).model()
    a, b = (torch.nn.utils.parameters_to_vector(m.parameters()).detach() for m in (theirs, mine))
    return ((a - b).abs().max() / a.abs().max()).item()


def measure(name: str, repeats: int, rounds: int, device: str) -> dict:
    data, parts = synthetic()
    torch.manual_seed(0)
    start = NETWORKS[name](data.shape, 10)
    difference = check(lambda: copy.deepcopy(start), data, parts, device)
    images, labels = (data.x_train.float() / 255).to(device), data.y_train.to(device)
    model = copy.deepcopy(start).to(device)
    contestants = {
        "plain loop": lambda: plain(model, images, labels, parts, rounds),
        "fedlib": lambda: ours(start, data, parts, rounds, device=device),
    }
    seconds = {who: [] for who in contestants}
    for work in contestants.values():  # warm up
        work()
    for _ in range(repeats):
        for who, work in contestants.items():
            seconds[who].append(timed(work, device) / rounds)
    ratios = [p / f for p, f in zip(seconds["plain loop"], seconds["fedlib"], strict=True)]
    return {"network": name, "float64 difference": difference, "seconds per round": seconds,
            "ratio": statistics.median(ratios), "ratio from": min(ratios), "ratio to": max(ratios)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", choices=("cpu", "cuda"))
    parser.add_argument("--json", help="write the figures to this file")
    options = parser.parse_args()
    machine = torch.cuda.get_device_name() if options.device == "cuda" else f"{platform.machine()} CPU"
    print(f"{machine}, {torch.get_num_threads()} intra-op threads for the plain loop, torch {torch.__version__}")
    print(f"{CLIENTS} clients x {IMAGES} images, batch {BATCH}, {options.repeats} repeats of {options.rounds} rounds")
    machine = torch.cuda.get_device_name() if options.device == "cuda" else f"{platform.machine()} CPU"
    results = [measure(name, options.repeats, options.rounds, options.device) for name in NETWORKS]
    for r in results:
        loop, fedlib = (1e3 * statistics.median(s) for s in r["seconds per round"].values())
        spread = f"{r['ratio from']:.2f}-{r['ratio to']:.2f}"
        print(f"{r['network']:10} {loop:15.1f} {fedlib:16.1f} {r['ratio']:7.2f} {spread:>13}  "
              f"{r['float64 difference']:.1e}")
    if options.json:
        with open(options.json, "w") as file:
            json.dump({"machine": machine, "torch": torch.__version__, "results": results}, file, indent=1)


if __name__ == "__main__":
    main()
