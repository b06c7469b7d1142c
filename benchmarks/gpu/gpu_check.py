"""Does fedlib compute on a GPU what it computes on a CPU, and how fast?

    PYTHONPATH=. python benchmarks/gpu/gpu_check.py [--device cuda] [--seconds 170] [--out FILE]

Three sections, each in a process of its own with a limit of its own, so that a crash or a hang costs only itself:

- *correct*: every kind of method, both engines, with and without CUDA graphs, in float64, against the CPU;
- *after*: is the process healthy after a capture has failed? (random numbers, memory, the next capture);
- *speed*: rounds/s of engines and precisions, and of a plain loop (``speed.py``).

What does not fit in the time is named. FILE gets the card of the machine and all lines, as JSON. The exit status is 1
if a line is BAD or a section has not come to its end. ``--device cpu --small`` tries the script itself.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from cases import Case, cases
from common import card, noise
from speed import speed
from torch import nn

import fedlib as fl
from fedlib import algorithms as A

SHARES = {"correct": 0.4, "after": 0.1, "speed": 0.5}  # of the time
IMPORTS = 30  # seconds that a process may take on top, to begin
AGREE = 1e-8  # float64 rounds at 1e-16


def correct(device: str, deadline: float, small: bool) -> Iterator[str]:
    """Every case against the CPU's engine "clients"."""
    kinds = {"eager": False} if device == "cpu" else {"graph": True, "eager": False}
    worst, float64 = 0.0, {"lr": [0.01], "precision": "float64"}
    for case in cases(small):
        expected = numbers(trained(case, device="cpu", engine="clients", workers=1, **float64))
        for engine, kind in [(engine, kind) for engine in ("stacked", "clients") for kind in kinds]:
            name = f"{case.name:25} {engine:8} {kind}"
            if time.monotonic() > deadline:
                yield f"--  {name}: out of time"
                continue
            try:
                with warnings.catch_warnings(record=True) as told:
                    warnings.simplefilter("always")
                    sim = trained(case, kinds[kind], device=device, engine=engine, **float64)
                weights, history = map(difference, numbers(sim), expected)
            except Exception as error:
                yield f"BAD {name}: {type(error).__name__}: {str(error)[:200]}"
                continue
            largest = np.max([weights, history])
            worst, verdict = np.max([worst, largest]), "ok " if largest < AGREE else "BAD"
            captures = sim.clients.trainer.recordings.made
            yield f"{verdict} {name} captures {captures}: {weights:.1e}, history {history:.1e} {notes(told)}".rstrip()
    yield f"largest difference {worst:.1e}"


def trained(case: Case, capture: bool = True, **options) -> fl.Simulation:
    """The federation after its rounds, evaluated halfway and at the end."""
    sim = fl.Simulation(case.model, case.data, case.parts, case.algorithm, **{**case.options, **options})
    sim.clients.trainer.recordings.possible = capture
    for t in range(1, case.rounds + 1):
        sim.step()
        if t in (case.rounds // 2, case.rounds):
            sim.evaluate()
    return sim


def numbers(sim: fl.Simulation) -> tuple[np.ndarray, np.ndarray]:
    """Every client's network as it stands, with what it has for itself, and the history."""
    (run,) = sim.runs()
    nets = [run.model(), *(run.model(client) for client in range(run.config["clients"]))]
    tensors = [t.detach().double().flatten().cpu() for net in nets for t in (*net.parameters(), *net.buffers())]
    return torch.cat(tensors).numpy(), run.history.to_numpy(float)


def difference(a: np.ndarray, b: np.ndarray) -> float:
    """The largest; NaN where only one of them is NaN, which then agrees with nothing."""
    if a.shape != b.shape:
        return np.nan
    return float(np.where(np.isnan(a) & np.isnan(b), 0, np.abs(a - b)).max())


def notes(told: Sequence[warnings.WarningMessage]) -> str:
    """What was warned of the GPU."""
    said = {str(warning.message)[:160] for warning in told}
    return "; ".join(sorted(text for text in said if any(w in text.lower() for w in ("graph", "memory", "stream"))))


def after(device: str, deadline: float, small: bool) -> Iterator[str]:
    """In one process: a method that cannot be captured, then some that can."""
    data, parts = noise(200, (1, 8, 8)), list(torch.arange(200).split([30, 50, 60, 60]))
    looks = A.Algorithm("looks", correct=(lambda G, W, local: G * float(G.norm().item() >= 0),))
    steps, epoch = {"local_steps": 2, "batch_size": 8}, {"local_epochs": 1, "batch_size": 16}

    def net() -> nn.Module:
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.Dropout(0.2), nn.ReLU(), nn.Linear(16, 10))

    for name, algorithm, options in (
        ("a method that calls item()", looks, steps),
        ("unequal epochs", A.fedavg(), epoch),
        ("equal steps, dropout", A.fedavg(), steps),
    ):
        case = Case(name, algorithm, net, data, parts, options, rounds=4)
        try:
            with warnings.catch_warnings(record=True) as told:
                warnings.simplefilter("always")
                sim = trained(case, lr=[0.1], device=device, engine="stacked")
            torch.rand(3, device=device)
            if device != "cpu":
                torch.cuda.empty_cache()
            yield f"ok  {name}: captures {sim.clients.trainer.recordings.made} {notes(told)}".rstrip()
        except Exception as error:
            yield f"BAD {name}: {type(error).__name__}: {str(error)[:300]}"


def section(name: str, args: argparse.Namespace) -> None:
    """Print the lines of a section, in this process."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")  # those that matter become part of a line
    began = time.monotonic()
    lines = {"correct": correct, "after": after, "speed": speed}[name]
    for line in lines(args.device, began + SHARES[name] * args.seconds, args.small):
        print(line, flush=True)
    print(f"-- {name}: {time.monotonic() - began:.0f} s", flush=True)


def in_a_process(name: str, args: argparse.Namespace) -> dict:
    """Run a section and pass its lines on: how it ended, and the lines."""
    own = ["--section", name, "--device", args.device, "--seconds", str(args.seconds), *["--small"] * args.small]
    lines, command = [], [sys.executable, __file__, *own]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        limit = threading.Timer(SHARES[name] * args.seconds + IMPORTS, process.kill)
        limit.start()
        for line in process.stdout:
            print(line, end="", flush=True)
            lines.append(line.rstrip())
    limit.cancel()
    print(f"== {name}: exit {process.returncode}", flush=True)  # -9: killed
    return {"exit": process.returncode, "lines": lines}


def main() -> int:
    """Run the sections, or one of them here; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--seconds", type=float, default=170, help="for all sections together")
    parser.add_argument("--small", action="store_true", help="few rounds, narrow networks")
    parser.add_argument("--out", type=Path, help="a JSON file")
    parser.add_argument("--section", choices=SHARES, help="only this one, in this process, without a file")
    args = parser.parse_args()
    if args.section:
        section(args.section, args)
        return 0
    result = {"card": card(args.device)}
    print(result["card"], flush=True)
    result["sections"] = {name: in_a_process(name, args) for name in SHARES}
    if args.out:
        args.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    found = result["sections"].values()
    return int(any(s["exit"] != 0 or any(line.startswith("BAD") for line in s["lines"]) for s in found))


if __name__ == "__main__":
    sys.exit(main())
