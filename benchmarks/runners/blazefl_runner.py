"""BlazeFL: its FedAvg, with the serial trainer or (option ``workers``) with a pool of threads."""

import copy

from blazefl.contrib.fedavg import FedAvgBaseClientTrainer, FedAvgBaseServerHandler, FedAvgThreadPoolClientTrainer
from common import Turns, Work, main
from torch import nn


class Selector:
    """A copy of the network, whatever the name."""

    def __init__(self, net: nn.Module):
        self.net = net

    def select_model(self, name: str) -> nn.Module:
        return copy.deepcopy(self.net)


class Dataset:
    """The given batches in place of a shuffling loader."""

    def __init__(self, work: Work):
        self.work, self.round = work, 0

    def get_dataloader(self, type_: str, cid: int, batch_size: int, generator: object):
        return self.work.batches(self.round, cid)


class Server(FedAvgBaseServerHandler):
    """Samples the given cohorts, and weights clients by size: BlazeFL counts the images of their batches."""

    def sample_clients(self) -> list[int]:
        return self.dataset.work.cohort(self.round)

    def global_update(self, buffer: list) -> None:
        for package in buffer:
            package.data_size = len(self.dataset.work.parts[package.cid])
        super().global_update(buffer)


def train(work: Work, turns: Turns, options: dict) -> nn.Module:
    dataset, clients = Dataset(work), len(work.parts)
    common = {
        "model_selector": Selector(work.network()),
        "model_name": "",
        "dataset": dataset,
        "num_clients": clients,
        "device": "cpu",
        "batch_size": work.settings["batch_size"],
        "seed": 0,
    }
    ratio = (work.settings["clients_per_round"] + 0.5) / clients  # rounded down by BlazeFL
    server = Server(global_round=work.rounds, sample_ratio=min(ratio, 1.0), **common)
    local = {**common, "epochs": 1, "lr": work.settings["lr"]}
    trainer = (
        FedAvgThreadPoolClientTrainer(num_parallels=options["workers"], **local)
        if "workers" in options
        else FedAvgBaseClientTrainer(**local)
    )
    while not server.if_stop():  # the loop of its documentation
        turns.wait()
        dataset.round = server.round
        sampled, broadcast = server.sample_clients(), server.downlink_package()
        trainer.local_process(broadcast, sampled)
        for package in trainer.uplink_package():
            server.load(package)
        turns.over()
    return server.model


if __name__ == "__main__":
    main(train, "blazefl")
