"""Flower's simulation: message-based FedAvg, clients in Ray actors of one core each."""

import functools
import os
import sys
import time

os.environ.update(FLWR_TELEMETRY_ENABLED="0", RAY_USAGE_STATS_ENABLED="0", RAY_worker_niceness="0")

import torch  # noqa: E402
import torch.nn.functional as F  # noqa: E402
from common import Turns, Work, main  # noqa: E402
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MessageType, MetricRecord, RecordDict  # noqa: E402
from flwr.clientapp import ClientApp  # noqa: E402
from flwr.serverapp import Grid, ServerApp  # noqa: E402
from flwr.serverapp.strategy import FedAvg  # noqa: E402
from flwr.simulation import run_simulation  # noqa: E402
from torch import nn  # noqa: E402


@functools.cache
def once(path: str) -> tuple[Work, nn.Module]:
    """The work and a network, read once by every actor."""
    torch.set_num_threads(1)
    work = Work(path)
    return work, work.network()


def local_training(message: Message, context: Context) -> Message:
    """One client's round, as in Flower's PyTorch tutorial."""
    import flower_runner  # the actor's own copy of this module: its cache outlives a message

    config = message.content["config"]
    work, net = flower_runner.once(config["work"])
    net.load_state_dict(message.content["arrays"].to_torch_state_dict())
    optimiser = torch.optim.SGD(net.parameters(), lr=work.settings["lr"])
    for x, y in work.batches(config["round"], config["client"]):
        loss = F.cross_entropy(net(x), y)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    size = MetricRecord({"num-examples": len(work.parts[config["client"]])})
    content = RecordDict({"arrays": ArrayRecord(net.state_dict()), "metrics": size})
    return Message(content=content, reply_to=message)


class Strategy(FedAvg):
    """FedAvg with the given cohorts, taking turns."""

    def __init__(self, work: Work, turns: Turns, path: str):
        super().__init__(fraction_evaluate=0.0)
        self.work, self.turns, self.path = work, turns, path

    def configure_train(self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid) -> list:
        while len(nodes := sorted(grid.get_node_ids())) < len(self.work.parts):
            time.sleep(0.01)
        self.turns.wait()
        t = server_round - 1
        return [
            Message(
                RecordDict({"arrays": arrays, "config": ConfigRecord({"round": t, "client": k, "work": self.path})}),
                nodes[k],
                MessageType.TRAIN,
            )
            for k in self.work.cohort(t)
        ]

    def aggregate_train(self, server_round: int, replies: list) -> tuple:
        result = super().aggregate_train(server_round, replies)
        self.turns.over()
        return result


def train(work: Work, turns: Turns, options: dict) -> nn.Module:
    final, path = work.network(), os.path.abspath(sys.argv[1])
    server = ServerApp()

    @server.main()
    def rounds(grid: Grid, context: Context) -> None:
        result = Strategy(work, turns, path).start(grid, ArrayRecord(final.state_dict()), num_rounds=work.rounds)
        final.load_state_dict(result.arrays.to_torch_state_dict())

    client = ClientApp()
    client.train()(local_training)
    actors = options["actors"]
    run_simulation(
        server,
        client,
        num_supernodes=len(work.parts),
        backend_config={"init_args": {"num_cpus": actors}, "client_resources": {"num_cpus": 1}},
    )
    return final


if __name__ == "__main__":
    main(train, "flwr", "ray")
