"""Chapter 2's open question on one GPU, as far as the time goes: does LN's lead over no norm last on CIFAR-10?

    PYTHONPATH=. python benchmarks/gpu/ln_paper.py --engine clients --tf32 --benchmark --seconds 400 --out DIR

The paper's CNN, ten clients of one class each, 10 local steps of 32, flip + crop; without norm, with feature norm, with
layer norm; learning rates 0.01, 0.05 and 0.1. All rates and seeds of a network are one cohort. The networks take turns
of ``--slice`` rounds, with a checkpoint after each, until the time is over: the same command goes on from there.
DIR/ln_paper.json has the card of the machine and every curve so far. ``--device cpu --small`` tries the script itself.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import replace
from pathlib import Path

from common import card, noise, switch

import fedlib as fl
from fedlib.files import replacing
from fedlib.simulate import ENGINES

HALF = 25_000
NORMS = ("none", "feature", "layer")
RATES = [0.01, 0.05, 0.1]
LOCAL = {"local_steps": 10, "batch_size": 32, "augment": "flip+crop"}


def arguments() -> argparse.Namespace:
    """What the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder of cifar10.npz; default: where fedlib keeps its data")
    parser.add_argument("--half", action="store_true", help="the first 25,000 training images only")
    parser.add_argument("--out", type=Path, default=Path("."), help="folder of the result and the checkpoints")
    parser.add_argument("--seconds", type=float, default=400, help="no turn but the first begins that would end later")
    parser.add_argument("--rounds", type=int, default=10_000, help="of each network, at most")
    parser.add_argument("--slice", type=int, default=200, help="rounds of a turn, and between evaluations")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--engine", choices=ENGINES, default="auto")
    parser.add_argument("--chunk", type=int, help="rows stacked together")
    parser.add_argument(
        "--tf32", action="store_true", help="in convolutions and matrix products; without it in neither"
    )
    parser.add_argument("--benchmark", action="store_true", help="cuDNN looks for the fastest convolutions")
    parser.add_argument("--small", action="store_true", help="noise, a narrow network, turns of 2 rounds")
    args = parser.parse_args()
    if args.small:
        args.slice = 2
    return args


def images(args: argparse.Namespace) -> fl.data.Data:
    """CIFAR-10 or its first half; noise if ``--small``."""
    if args.small:
        return noise(500, (3, 32, 32))
    data = fl.data.load("cifar10", args.data)
    return replace(data, x_train=data.x_train[:HALF], y_train=data.y_train[:HALF]) if args.half else data


def federation(norm: str, data: fl.data.Data, args: argparse.Namespace) -> fl.Simulation:
    """The federation of one network, from its checkpoint if there is one."""
    widths = {"width": 4, "hidden": 16} if args.small else {}
    local = {**LOCAL, "local_steps": 2, "batch_size": 8} if args.small else LOCAL
    sim = fl.Simulation(
        lambda: fl.models.cnn(data.shape, data.num_classes, norm=norm, **widths),
        data,
        fl.partition.n_class(data.y_train, 10, 1, seed=0),
        lr=RATES,
        seed=args.seeds,
        device=args.device,
        engine=args.engine,
        chunk=args.chunk,
        precision="tf32" if args.tf32 and args.device != "cpu" else "float32",
        **local,
    )
    if checkpoint(norm, args).exists():
        sim.load(checkpoint(norm, args))
    return sim


def checkpoint(norm: str, args: argparse.Namespace) -> Path:
    """Its file; one for each precision, which a checkpoint does not know."""
    return args.out / f"{norm}.{'tf32' if args.tf32 else 'float32'}.pt"


def turn(sim: fl.Simulation, until: int, file: Path) -> None:
    """Go on to a round, evaluate, count the seconds and write the checkpoint; nothing where that has been done."""
    if sim.t >= until or not sim.live:
        return
    start = time.monotonic()
    while sim.t < until and sim.live:
        sim.step()
    sim.evaluate()
    sim.seconds += time.monotonic() - start
    sim.save(file)


def curves(sim: fl.Simulation) -> list[dict]:
    """Accuracy over rounds of each rate and seed."""
    return [
        {
            "lr": run.config["lr"],
            "seed": run.config["seed"],
            "diverged": run.diverged,
            "round": run.history["round"].tolist(),
            "accuracy": run.history["accuracy"].round(4).tolist(),
        }
        for run in sim.runs()
    ]


def main() -> None:
    """Take turns until the time or the rounds are over."""
    began = time.monotonic()
    args = arguments()
    args.out.mkdir(parents=True, exist_ok=True)
    switch(args.benchmark)
    data = images(args)
    sims = {norm: federation(norm, data, args) for norm in NORMS}
    same = ("local_steps", "batch_size", "augment", "engine", "chunk", "wave")
    told = {
        **card(args.device),
        "data": f"{data.name}, {len(data.y_train)} training images",
        "rates": RATES,
        "seeds": args.seeds,
        **{name: sims["none"].config[name] for name in same},
        "tf32": args.tf32,
        "benchmark": args.benchmark,
    }
    rounds, longest = min((sim.t for sim in sims.values() if sim.live), default=args.rounds), 0.0
    while rounds < args.rounds and any(sim.live for sim in sims.values()):
        if longest and time.monotonic() - began + 1.2 * longest > args.seconds:  # no turn is quite like the last one
            break
        start, rounds = time.monotonic(), min(rounds + args.slice, args.rounds)
        for norm, sim in sims.items():
            turn(sim, rounds, checkpoint(norm, args))
        longest = max(longest, time.monotonic() - start)
        found = {norm: curves(sim) for norm, sim in sims.items()}
        result = {"card": told, "rounds": rounds, "seconds": {n: s.seconds for n, s in sims.items()}, "curves": found}
        with replacing(args.out / "ln_paper.json") as part:
            part.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
        ends = {norm: {c["lr"]: c["accuracy"][-1:] for c in lines} for norm, lines in found.items()}
        print(f"{time.monotonic() - began:.0f} s, {rounds} rounds: {ends}", flush=True)


if __name__ == "__main__":
    main()
