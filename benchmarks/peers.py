"""fedlib, a plain PyTorch loop and other simulators on the same federated work, in turns.

    python benchmarks/peers.py [WORKLOAD ...] [--python python3.12] [--repeats 9] [--out benchmarks/results]
    python benchmarks/peers.py --short --here      fedlib beside the plain loop, in three minutes; nothing is installed

Workloads: the names in WORKLOADS, "agreement" and "growth"; when left out all, on a CPU without the two networks that
are for a GPU. Each writes OUT/WORKLOAD.json, from which the book's page is made.

What is trained is fixed to the last batch: the initial weights, the cohorts, the batches and their order are drawn once
and handed to every runner (`benchmarks/runners/`), each a process in a virtual environment of its own (made on first
use in `benchmarks/.venv`; the peers' environments see the torch of the first one, so that all run the same build).
All runners of a workload are alive at once and take turns, a turn being one round or a few; the others wait meanwhile.
"agreement" trains for two rounds in float64, on equal and on unequal clients, and compares the final weights.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import json
import math
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field, replace
from multiprocessing import Pipe
from pathlib import Path

import numpy as np
import torch

import fedlib as fl
from fedlib.book import card

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE / "runners"))

from common import network  # noqa: E402

# name of a runner -> what pip installs into its environment; None: it runs in fedlib's own
PACKAGES = {
    "plain": None,
    "fedlib": None,
    "pfl": "pfl",
    "flower": "flwr[simulation]",
    "fedlab": "fedlab",
    "blazefl": "blazefl[contrib,reproducibility]",
}
NAMES = {
    "plain": "plain loop",
    "fedlib": "fedlib",
    "pfl": "pfl-research",
    "flower": "Flower",
    "fedlab": "FedLab",
    "blazefl": "BlazeFL",
}
# largest relative difference of final weights in float64; pfl-research casts what clients send to float32
TOLERANCE = {"pfl": 1e-7}
AS_WRITTEN, CHANNELS_LAST = "as written", "channels-last"
SECONDS = 300  # that a runner may be silent
BESIDE = 0.2  # of a core: what others may use during a turn without a word about it
SETTLE = 0.2  # seconds before a turn, in which the runner before it tidies up


@dataclass(frozen=True)
class Contestant:
    """One line of a table: a runner, its options, and how its images lie in memory."""

    runner: str
    layout: str
    options: dict = field(default_factory=dict)

    @property
    def label(self) -> str:
        told = [
            f"{value} {name if value > 1 else name[:-1]}" if isinstance(value, int) else value
            for name, value in self.options.items()
        ]
        return ", ".join([NAMES[self.runner], *told])


# Each peer in the settings that were found best on two cores.
PEERS = (
    ("pfl", {"processes": 2, "threads": 1}),
    ("blazefl", {"threads": 2}),
    ("blazefl", {"workers": 2, "threads": 1}),
    ("fedlab", {"threads": 2}),
    ("flower", {"actors": 2}),
)


def contestants(layouts: tuple[str, ...], bf16: bool, device: str, peers: bool) -> list[Contestant]:
    """All lines of a table; the peers' settings are those for two cores, so a GPU has none of them."""
    ours = [Contestant("fedlib", layout) for layout in layouts[::-1]]
    ours += [Contestant("fedlib", CHANNELS_LAST, {"precision": "bf16"})] if bf16 else []
    others = (("plain", {"threads": 2}), *(PEERS if peers and device == "cpu" else ()))
    return ours + [Contestant(runner, layout, options) for layout in layouts for runner, options in others]


CIFAR = {
    "shape": [3, 32, 32],
    "classes": 10,
    "clients": 100,
    "images": 100,
    "clients_per_round": 10,
    "batch_size": 20,
    "local_epochs": 1,
    "local_steps": None,
    "lr": 0.05,
    "seed": 0,
    "bias": True,
}
WORKLOADS = {
    "small_cnn": {
        **CIFAR,
        "title": "small CNN",
        "channels": [16, 32],
        "kernel": 3,
        "hidden": [64],
        "rounds_per_turn": 8,
    },
    "leaf_cnn": {
        **CIFAR,
        "title": "LEAF CNN",
        "channels": [32, 64],
        "kernel": 5,
        "hidden": [512],
        "rounds_per_turn": 2,
    },
    "mlp": {**CIFAR, "title": "MLP", "channels": [], "kernel": 0, "hidden": [200, 200], "rounds_per_turn": 10},
    "logistic": {
        **CIFAR,
        "title": "logistic regression",
        "channels": [],
        "kernel": 0,
        "hidden": [],
        "rounds_per_turn": 20,
    },
    # one class a client, ten clients of unequal size, all in every round: chapter 2's quick preset until 2026-11-28
    "one_class": {
        "title": "one class each, a slim CNN",
        "data": "digits",
        "channels": [8, 16],
        "kernel": 3,
        "hidden": [32],
        "bias": False,
        "clients": 10,
        "clients_per_round": 10,
        "batch_size": 16,
        "local_steps": 5,
        "local_epochs": None,
        "lr": 0.1,
        "seed": 0,
        "rounds_per_turn": 20,
    },
    "resnet18_gn": {
        **CIFAR,
        "title": "ResNet-18 with group norm",
        "model": "resnet18",
        "options": {"norm": "group"},
        "channels": [],
        "hidden": [],
    },
    "transformer": {
        **CIFAR,
        "title": "character transformer",
        "model": "char_transformer",
        "options": {"dropout": 0.0},
        "shape": [80],
        "classes": 80,
        "channels": [],
        "hidden": [],
    },
}
FOR_A_GPU = ("resnet18_gn", "transformer")
SHORT = ("one_class", "small_cnn")
SWEEP = {"lr": [0.01, 0.03, 0.1, 0.3, 1.0], "seed": [0, 1, 2]}


# --- the work ---


def prepare(
    path: Path,
    workload: dict,
    *,
    name: str,
    rounds: int,
    layout: str,
    precision: str = "float32",
    device: str = "cpu",
    schedule: bool = True,
) -> None:
    """Write everything that determines the training to an .npz file."""
    s = {
        "images": 100,
        **workload,
        "name": name,
        "rounds": rounds,
        "layout": layout,
        "precision": precision,
        "device": device,
    }
    rng = np.random.default_rng(0)
    if "data" in s:
        data = fl.data.load(s["data"])
        images, labels = data.x_train.permute(0, 2, 3, 1).numpy(), data.y_train.numpy()
        s.update(shape=list(data.shape), classes=data.num_classes)
        parts = [p.numpy() for p in fl.partition.n_class(data.y_train, s["clients"], 1, seed=0)]
    else:
        stock = s.get("stock", s["clients"] * s["images"])  # clients share images where it is less than they hold
        first, *rest = s["shape"]  # channels, height, width; or the length of a text
        images = rng.integers(0, 256 if rest else s["classes"], (stock, *rest, first), dtype=np.uint8)
        labels = rng.integers(0, s["classes"], stock)
        parts = list((np.arange(s["clients"] * s["images"]) % stock).reshape(s["clients"], -1))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(s["seed"])
        start = torch.nn.utils.parameters_to_vector(network(s).parameters()).detach().double().numpy()
    cohorts, index, size = draw(s, parts, rounds) if schedule else (np.zeros(0, int),) * 3
    np.savez(
        path,
        settings=np.array(json.dumps(s)),
        images=images,
        labels=labels,
        start=start,
        parts=np.concatenate(parts),
        part_sizes=[len(p) for p in parts],
        cohorts=cohorts,
        index=index,
        size=size,
    )


def draw(s: dict, parts: list[np.ndarray], rounds: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Cohorts (rounds, K), positions of images (rounds, K, T, B), padded, and batch sizes (rounds, K, T).

    As fedlib draws them, which takes no schedule from outside: see :func:`fedlib.schedule.local_batches`.
    """
    cohorts, steps = [], []
    for t in range(rounds):
        rng, K = np.random.default_rng([s["seed"], t]), s["clients_per_round"]
        cohorts.append(np.arange(K) if K == len(parts) else np.sort(rng.choice(len(parts), K, replace=False)))
        steps += [
            fl.schedule.local_batches(
                np.random.default_rng([s["seed"], t, 1 + k]),
                parts[k],
                s["batch_size"],
                local_steps=s["local_steps"],
                local_epochs=s["local_epochs"],
            )
            for k in cohorts[-1]
        ]
    T = max(map(len, steps))
    index, size = np.zeros((len(steps), T, s["batch_size"]), int), np.zeros((len(steps), T), int)
    for row, batches in enumerate(steps):
        for step, batch in enumerate(batches):
            index[row, step, : len(batch)], size[row, step] = batch, len(batch)
    return np.stack(cohorts), index.reshape(rounds, K, T, -1), size.reshape(rounds, K, T)


# --- environments ---


def environment(runner: str, python: str | None) -> str:
    """The interpreter of a runner's environment, made if there is none.

    Raises:
        RuntimeError: pip could not install the package; the message is the end of what it said.
    """
    if python is None:
        return sys.executable
    root = HERE / ".venv"
    base = root / "fedlib"
    make(base, python, ["-e", str(HERE.parent)], needs=(HERE.parent / "pyproject.toml").read_text(encoding="utf-8"))
    package = PACKAGES[runner]
    if package is None:
        return str(base / "bin" / "python")
    own = root / runner
    make(own, python, [package], needs=package, see=base)
    return str(own / "bin" / "python")


def make(folder: Path, python: str, packages: list[str], needs: str, see: Path | None = None) -> None:
    """A virtual environment with some packages, which falls back on those of another one; anew if needs changed."""
    made = folder / "made"
    if made.exists() and made.read_text(encoding="utf-8") == needs:
        return
    subprocess.run([python, "-m", "venv", "--clear", folder], check=True)
    if see:
        (own,), (theirs,) = (list(f.glob("lib/python*/site-packages")) for f in (folder, see))
        (own / "base.pth").write_text(f"{theirs}\n", encoding="utf-8")
    done = subprocess.run([folder / "bin" / "pip", "install", "-q", *packages], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"not installed: {done.stderr.strip().splitlines()[-1]}")
    made.write_text(needs, encoding="utf-8")


# --- runners ---


class Runner:
    """A process that trains, one round at a time."""

    def __init__(self, contestant: Contestant, work: Path, python: str | None, folder: Path):
        self.contestant, self.seconds, self.beside = contestant, [], []
        self.startup, self.peak_mb, self.others = 0.0, None, math.nan
        command = [
            environment(contestant.runner, python),
            str(HERE / "runners" / f"{contestant.runner}_runner.py"),
            str(work),
        ]
        # a peer must not see the harness's own packages
        env = {
            k: v
            for k, v in os.environ.items()
            if k not in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
            and (k != "PYTHONPATH" or PACKAGES[contestant.runner] is None)
        }
        env["TQDM_DISABLE"] = "1"
        self.connection, theirs = Pipe()
        self.log = (folder / f"{theirs.fileno()}.{time.time_ns()}.log").open("w+", encoding="utf-8")
        self.started = time.perf_counter()
        self.process = subprocess.Popen(
            [*command, str(theirs.fileno()), json.dumps(contestant.options)],
            env=env,
            stdout=self.log,
            stderr=self.log,
            pass_fds=[theirs.fileno()],
            start_new_session=True,
        )
        theirs.close()  # so that a runner that dies closes the connection
        self.versions = self._hear()

    def _hear(self):
        """What the runner says next.

        Raises:
            RuntimeError: it has died, or said nothing for a long time; with the end of its output.
        """
        try:
            if self.connection.poll(SECONDS):
                return self.connection.recv()
        except (EOFError, OSError):
            self.process.wait(60)
        self._kill()
        self.log.seek(0)
        lines = [line.strip() for line in self.log.read().splitlines() if line.strip()]
        raise RuntimeError(f"it stopped: {' | '.join(lines[-3:])}")

    def rounds(self, count: int) -> float:
        """Let it train; seconds a round. ``others``: how much of a core everything else used meanwhile."""
        time.sleep(SETTLE)
        self.peak_mb = memory(self.process.pid, "VmHWM")  # before, since after the last round a runner shuts down
        before, start = worked(without=self.process.pid), time.perf_counter()
        for _ in range(count):
            self.connection.send("go")
            self._hear()
        seconds = time.perf_counter() - start
        self.others = (worked(without=self.process.pid) - before) / seconds
        return seconds / count

    def start(self) -> None:
        """The first two rounds."""
        self.rounds(2)
        self.startup = time.perf_counter() - self.started

    def finish(self) -> np.ndarray:
        """The final weights."""
        weights = self._hear()
        self.connection.send("bye")
        self.process.wait(60)
        self._kill()
        return weights

    def _kill(self) -> None:
        """End the process and what it has started and left behind."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)


def of_session(session: int, name: str) -> list[str]:
    """The texts of /proc/PID/name of all processes of a session; none without /proc."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # the process has ended
            if int((folder / "stat").read_text(encoding="utf-8").rpartition(")")[2].split()[3]) == session:
                found.append((folder / name).read_text(encoding="utf-8"))
    return found


def memory(session: int, entry: str) -> float | None:
    """MB of resident memory, now (VmRSS) or at its peak (VmHWM), of all processes of a session; None without /proc."""
    found = [
        int(line.split()[1]) / 1024
        for text in of_session(session, "status")
        for line in text.splitlines()
        if line.startswith(entry)
    ]
    return sum(found) if found else None


def worked(without: int) -> float:
    """Seconds that all cores have worked so far for others than the processes of a session; nan without /proc."""
    if not Path("/proc/stat").exists():
        return math.nan
    own = [text.rpartition(")")[2].split()[11:13] for text in of_session(without, "stat")]  # for users, the system
    return float(cores_time()[:3].sum() - sum(int(n) for pair in own for n in pair)) / os.sysconf("SC_CLK_TCK")


def cores_time() -> np.ndarray:
    """Ticks that all cores have spent since the start: for users, low priority, the system, idle, waiting for a disk,
    and three more."""
    return np.array(Path("/proc/stat").read_text(encoding="utf-8").split("\n", 1)[0].split()[1:9], dtype=int)


def launch(
    who: list[Contestant], works: dict[str, Path], python: str | None, folder: Path, left_out: dict[str, str]
) -> list[Runner]:
    """Start the runners, one after the other; those that cannot run are left out, with the reason."""
    runners = []
    for contestant in who:
        try:
            runner = Runner(contestant, works[contestant.layout], python, folder)
            runner.start()
        except RuntimeError as error:
            left_out[f"{contestant.label} ({contestant.layout})"] = str(error)
            print(f"left out: {contestant.label} ({contestant.layout}): {error}")
        else:
            runners.append(runner)
    return runners


# --- what is measured ---


def agreement(
    workloads: dict[str, dict], python: str | None, who: list[Contestant] | None = None, device: str = "cpu"
) -> dict:
    """Train for two rounds in float64; the largest difference from the plain loop, relative to the largest weight.

    Raises:
        RuntimeError: a runner has done other work.
    """
    found, left_out = {}, {}
    for name, workload in workloads.items():
        with tempfile.TemporaryDirectory() as folder:
            folder, layouts = Path(folder), layouts_of(workload)
            works = {layout: folder / f"{layout}.npz" for layout in layouts}
            for layout, path in works.items():
                prepare(path, workload, name=name, rounds=2, layout=layout, precision="float64", device=device)
            reference, differences = None, {}
            plain_first = sorted(
                who or contestants(layouts, False, device, python is not None), key=lambda c: c.runner != "plain"
            )
            for contestant in plain_first:
                if "threads" in contestant.options:  # their number changes nothing here but the time it takes
                    contestant = replace(contestant, options={**contestant.options, "threads": 1})
                for runner in launch([contestant], works, python, folder, left_out):
                    weights = runner.finish()
                    reference = weights if reference is None else reference
                    difference = np.abs(weights - reference).max() / np.abs(reference).max()
                    differences[f"{contestant.label} ({contestant.layout})"] = float(difference)
                    if difference > TOLERANCE.get(contestant.runner, 1e-12):
                        raise RuntimeError(
                            f"{contestant.label} has not done the work of {name}: its final weights "
                            f"differ by {difference:.1e}"
                        )
            found[name] = differences
            print(name, {label: f"{value:.1e}" for label, value in differences.items()}, flush=True)
    return {"differences": found, "left_out": left_out}


def layouts_of(workload: dict) -> tuple[str, ...]:
    convolutions = workload["channels"] or workload.get("model") == "resnet18"
    return (AS_WRITTEN, CHANNELS_LAST) if convolutions else (AS_WRITTEN,)


def race(
    name: str, workload: dict, python: str | None, repeats: int, device: str, who: list[Contestant] | None = None
) -> dict:
    """All contestants on one workload, in turns."""
    per_turn, left_out = workload.get("rounds_per_turn", 1), {}
    rounds = 2 + per_turn * (1 + repeats) + 1  # the last is not timed: after it a runner shuts down beside the others
    with tempfile.TemporaryDirectory() as folder:
        folder, layouts = Path(folder), layouts_of(workload)
        works = {layout: folder / f"{layout}.npz" for layout in layouts}
        for layout, path in works.items():
            prepare(path, workload, name=name, rounds=rounds, layout=layout, device=device)
        who = who or contestants(layouts, CHANNELS_LAST in layouts, device, python is not None)
        runners = launch(who, works, python, folder, left_out)
        for runner in runners:  # warm up
            runner.rounds(per_turn)
        order = np.random.default_rng(0)
        for _ in range(repeats):
            for i in order.permutation(len(runners)):  # nobody always follows the same one, which may still tidy up
                runners[i].seconds.append(runners[i].rounds(per_turn))
                runners[i].beside.append(runners[i].others)
        for runner in runners:
            runner.rounds(1)
            runner.finish()
    lines = [
        {
            "runner": r.contestant.runner,
            "label": r.contestant.label,
            "layout": r.contestant.layout,
            "options": r.contestant.options,
            "seconds": r.seconds,
            "startup": r.startup,
            "peak_mb": r.peak_mb,
            "beside": r.beside,
            "versions": r.versions,
        }
        for r in runners
    ]
    for line in lines:
        if max(line["beside"]) > BESIDE:
            share = ", ".join(f"{100 * one:.0f}" for one in line["beside"])
            print(f"while it was the turn of {line['label']} ({line['layout']}), others used {share} % of a core")
    return {"workload": workload, "repeats": repeats, "rounds_per_turn": per_turn, "lines": lines, "left_out": left_out}


def growth(python: str | None, device: str) -> dict:
    """fedlib alone: more sampled clients, also in waves, more rounds, more clients that are not sampled, a sweep."""
    small = {**WORKLOADS["small_cnn"], "images": 20, "clients": 1000, "stock": 10_000}
    tiny = {**WORKLOADS["logistic"], "images": 20, "stock": 10_000}

    def begin(folder: Path, workload: dict, rounds: int, **options) -> Runner:
        path = folder / f"{len(list(folder.iterdir()))}.npz"
        prepare(path, workload, name="growth", rounds=rounds, layout=CHANNELS_LAST, device=device, schedule=False)
        runner = Runner(Contestant("fedlib", CHANNELS_LAST, options), path, python, folder)
        runner.start()
        return runner

    def in_turns(runners: dict, rounds: dict) -> dict[object, list[float]]:
        """Seconds of a round, five times each."""
        seconds = {key: [] for key in runners}
        for _ in range(5):
            for key, runner in runners.items():
                seconds[key].append(runner.rounds(rounds[key]))
        for runner in runners.values():
            runner.finish()
        return seconds

    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        turns = {(10, 10): 50, (100, 100): 5, (1000, 1000): 1, (1000, 100): 1}  # about the same time for each
        runners = {
            (K, wave): begin(folder, {**small, "clients_per_round": K}, 2 + 5 * n, wave=wave)
            for (K, wave), n in turns.items()
        }
        seconds = in_turns(runners, turns)
        sampled = [
            {"sampled": K, "wave": wave, "seconds": seconds[K, wave], "peak_mb": runner.peak_mb}
            for (K, wave), runner in runners.items()
        ]
        sweeps = {}
        for name in ("one_class", "small_cnn"):
            turns = {1: 15, 15: 1}
            runners = {n: begin(folder, WORKLOADS[name], 2 + 5 * turns[n], **(SWEEP if n > 1 else {})) for n in turns}
            sweeps[name] = in_turns(runners, turns)
        runner, by_round = begin(folder, tiny, 1000), []
        for upto in (100, 250, 500, 1000):
            runner.rounds(upto - (by_round[-1]["rounds"] if by_round else 2))
            by_round.append({"rounds": upto, "mb": memory(runner.process.pid, "VmRSS")})
        runner.finish()
        by_clients = []
        for N in (100, 1000, 10_000):
            runner = begin(folder, {**tiny, "clients": N}, 20)
            runner.rounds(18)
            runner.finish()
            by_clients.append({"clients": N, "peak_mb": runner.peak_mb})
    return {
        "sampled": sampled,
        "sweeps": sweeps,
        "rounds": by_round,
        "clients": by_clients,
        "images_per_client": small["images"],
    }


# --- output ---


def provenance() -> dict:
    """Machine, date, and how busy the machine was with other things."""
    return {
        "hardware": card.hardware(),
        "date": datetime.date.today().isoformat(),
        "load": os.getloadavg()[0],
        "busy": busy(),
        "versions": card.versions(),
    }


def busy(seconds: float = 5.0) -> float | None:
    """The share of all cores' time, from now on for some seconds, in which they were not idle; None without /proc."""
    if not Path("/proc/stat").exists():
        return None
    before = cores_time()
    time.sleep(seconds)
    spent = cores_time() - before
    return float(1 - spent[3:5].sum() / spent.sum())  # idle, and waiting for a disk


def report(result: dict) -> None:
    """Medians, spreads, and how many times faster the first line is."""
    lines = result["lines"]
    for line in lines:
        ratios = [a / b for a, b in zip(line["seconds"], lines[0]["seconds"], strict=True)]
        peak = "" if line["peak_mb"] is None else f"{line['peak_mb']:6.0f} MB"
        print(
            f"  {line['label']:34} {line['layout']:14} {1e3 * statistics.median(line['seconds']):8.1f} ms "
            f"({1e3 * min(line['seconds']):.1f} to {1e3 * max(line['seconds']):.1f})   "
            f"x{statistics.median(ratios):5.2f} ({min(ratios):.2f} to {max(ratios):.2f})  "
            f"start {line['startup']:5.1f} s {peak}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    every = [*WORKLOADS, "agreement", "growth"]
    parser.add_argument("workloads", nargs="*", metavar="WORKLOAD", help=", ".join(every))
    parser.add_argument("--python", default=sys.executable, help="makes the environments; BlazeFL needs 3.12")
    parser.add_argument("--here", action="store_true", help="in this interpreter: fedlib and the plain loop only")
    parser.add_argument("--repeats", type=int, help="turns of each; 9, or 3 with --short")
    parser.add_argument(
        "--short",
        action="store_true",
        help=f"3 short turns, the plain loop on one thread, and only {', '.join(SHORT)} unless others are named",
    )
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument(
        "--out", type=Path, help="benchmarks/results; with --short or --here nothing is written without it"
    )
    given = parser.parse_args()
    unknown = set(given.workloads) - set(every)
    if unknown:
        parser.error(f"WORKLOAD must be one of {', '.join(every)}, got {', '.join(sorted(unknown))}")
    repeats = (3 if given.short else 9) if given.repeats is None else given.repeats
    if repeats < 1:
        parser.error(f"--repeats must be at least 1, got {repeats}")
    python = None if given.here else given.python
    out = given.out or (None if given.short or given.here else HERE / "results")
    usual = SHORT if given.short else [w for w in every if given.device == "cuda" or w not in FOR_A_GPU]
    for name in given.workloads or usual:
        before = provenance()
        if name == "agreement":
            few = {**WORKLOADS["small_cnn"], "images": 50, "clients_per_round": 4}
            result = agreement({"small_cnn": few, "one_class": WORKLOADS["one_class"]}, python, device=given.device)
        elif name == "growth":
            result = growth(python, given.device)
        else:
            workload, who = WORKLOADS[name], None
            if given.short:  # two threads that wait for each other take ten times as long beside other work
                workload = {**workload, "rounds_per_turn": max(1, workload.get("rounds_per_turn", 1) // 4)}
                who = contestants(layouts_of(workload), False, given.device, not given.here)
                who = [replace(c, options={"threads": 1}) if c.runner == "plain" else c for c in who]
            result = race(name, workload, python, repeats, given.device, who)
            print(WORKLOADS[name]["title"])
            report(result)
            sys.stdout.flush()
        if out is None:
            continue
        out.mkdir(parents=True, exist_ok=True)
        path = out / f"{name}{'' if given.device == 'cpu' else '.' + given.device}.json"
        path.write_text(json.dumps({**before, "device": given.device, **result}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
