"""``fedlib.Simulation``. It draws cohorts and batches itself, by its seed; the others have a copy of that schedule."""

import torch
from common import Turns, Work, main
from torch import nn

import fedlib as fl


class Contiguous(nn.Module):
    """Images in the order N,C,H,W: undoes what fedlib does."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.contiguous()


def train(work: Work, turns: Turns, options: dict) -> nn.Module:
    s = work.settings
    net = work.network()
    classes = [str(c) for c in range(s["classes"])]
    if work.images.ndim == 2:
        x, y = torch.from_numpy(work.images), torch.from_numpy(work.labels)
        data = fl.data.Data(s["name"], x, y, x[:20], y[:20], tuple(classes), mean=(), std=())
    else:
        net = net if s["layout"] == "channels-last" else nn.Sequential(Contiguous(), net)
        data = fl.data.from_arrays(s["name"], work.images, work.labels, work.images[:20], work.labels[:20], classes)
    options = {"lr": [s["lr"]], "seed": [s["seed"]], "precision": s["precision"], **options}
    sim = fl.Simulation(
        net,
        data,
        [torch.from_numpy(part) for part in work.parts],
        batch_size=s["batch_size"],
        local_steps=s["local_steps"],
        local_epochs=s["local_epochs"],
        clients_per_round=s["clients_per_round"],
        device=s["device"],
        **options,
    )
    for _ in range(work.rounds):
        turns.wait()
        sim.step()
        turns.over()
    return sim.runs()[0].model()


if __name__ == "__main__":
    main(train, "fedlib")
