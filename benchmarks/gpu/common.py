"""What both scripts share: the card of a result, images to train on without a data set, the switches of a GPU."""

from __future__ import annotations

import datetime
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch

import fedlib as fl


def card(device: str) -> dict:
    """On what and when a result was found: device, versions, commit (None where git is not there), date, command."""
    gpu = device != "cpu"
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--exclude=*"]
    try:
        commit = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        commit = None
    return {
        "device": torch.cuda.get_device_name(device) if gpu else device,
        "torch": str(torch.__version__),
        "cudnn": torch.backends.cudnn.version() if gpu else None,
        "commit": commit,
        "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
        "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
    }


def noise(images: int, shape: tuple[int, int, int]) -> fl.data.Data:
    """Random images (C, H, W) with random labels of ten classes, the same at every call; 200 to test on."""
    rng = np.random.default_rng(0)
    split = [(rng.integers(0, 256, (n, *shape[1:], shape[0]), np.uint8), rng.integers(0, 10, n)) for n in (images, 200)]
    return fl.data.from_arrays("noise", *split[0], *split[1], classes=list("0123456789"))


def switch(benchmark: bool = False) -> None:
    """cuDNN's search for the fastest convolutions; no TF32 in the plain loop (fedlib has a precision of that name)."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    torch.backends.cudnn.benchmark = benchmark
