"""FedLab: its standalone pipeline with the serial trainer."""

import torch
from common import Turns, Work, main
from fedlab.contrib.algorithm.fedavg import FedAvgSerialClientTrainer, FedAvgServerHandler
from fedlab.core.standalone import StandalonePipeline
from fedlab.utils import Aggregators, SerializationTool
from torch import nn


class Server(FedAvgServerHandler):
    """Samples the given cohorts, and weights clients by size, which FedLab's own handler does not."""

    def __init__(self, work: Work, **options):
        super().__init__(work.network(), **options)
        self.work = work

    def sample_clients(self) -> list[int]:
        return self.work.cohort(self.round)

    def global_update(self, buffer: list) -> None:
        sizes = [len(self.work.parts[k]) for k in self.work.cohort(self.round)]
        mean = Aggregators.fedavg_aggregate([rows[0] for rows in buffer], torch.tensor(sizes, dtype=self.work.dtype))
        SerializationTool.deserialize_model(self._model, mean)


class Dataset:
    """The given batches in place of a shuffling loader."""

    def __init__(self, work: Work, server: Server):
        self.work, self.server = work, server

    def get_dataloader(self, client: int, batch_size: int):
        return self.work.batches(self.server.round, client)


class Pipeline(StandalonePipeline):
    def __init__(self, work: Work, turns: Turns, *args):
        super().__init__(*args)
        self.work, self.turns = work, turns

    def evaluate(self) -> None:
        """Called at the end of every round."""
        self.turns.over()
        if self.handler.round < self.work.rounds:
            self.turns.wait()


def train(work: Work, turns: Turns, options: dict) -> nn.Module:
    ratio = (work.settings["clients_per_round"] + 0.5) / len(work.parts)  # rounded down by FedLab
    server = Server(work, global_round=work.rounds, sample_ratio=min(ratio, 1.0))
    trainer = FedAvgSerialClientTrainer(work.network(), len(work.parts))
    trainer.setup_dataset(Dataset(work, server))
    trainer.setup_optim(1, work.settings["batch_size"], work.settings["lr"])
    pipeline = Pipeline(work, turns, server, trainer)
    turns.wait()
    pipeline.main()
    return server.model


if __name__ == "__main__":
    main(train, "fedlab")
