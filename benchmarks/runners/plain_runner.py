"""FedAvg as one writes it first: one client after the other, one ``torch.optim.SGD`` a client."""

import copy

import torch
import torch.nn.functional as F
from common import Turns, Work, main
from torch import nn


def train(work: Work, turns: Turns, options: dict) -> nn.Module:
    server = work.network()
    client = copy.deepcopy(server)
    for t in range(work.rounds):
        turns.wait()
        total = sum(len(work.parts[k]) for k in work.cohort(t))
        mean = {name: torch.zeros_like(v) for name, v in server.state_dict().items()}
        for k in work.cohort(t):
            client.load_state_dict(server.state_dict())
            optimiser = torch.optim.SGD(client.parameters(), lr=work.settings["lr"])
            for x, y in work.batches(t, k):
                loss = F.cross_entropy(client(x), y)
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
            for name, v in client.state_dict().items():
                mean[name] += len(work.parts[k]) / total * v
        server.load_state_dict(mean)
        turns.over()
    return server


if __name__ == "__main__":
    main(train)
