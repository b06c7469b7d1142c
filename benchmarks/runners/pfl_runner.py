"""pfl-research: its simulated backend, in as many processes as option ``processes`` says."""

import json
import os
import socket
import subprocess
import sys

PROCESSES = json.loads(sys.argv[3]).pop("processes", 1)
if PROCESSES > 1 and "PFL_WORKER_RANK" not in os.environ:  # before pfl is imported, which then joins the others
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    os.environ.update(PFL_WORKER_ADDRESSES=",".join([address] * PROCESSES), PFL_WORKER_RANK="0")
    for rank in range(1, PROCESSES):
        subprocess.Popen([sys.executable, *sys.argv], env={**os.environ, "PFL_WORKER_RANK": str(rank)})
RANK = int(os.environ.get("PFL_WORKER_RANK", 0))

import torch  # noqa: E402
import torch.nn.functional as F  # noqa: E402
from common import Turns, Work, main  # noqa: E402
from pfl.aggregate.simulate import SimulatedBackend  # noqa: E402
from pfl.aggregate.weighting import WeightByDatapoints  # noqa: E402
from pfl.algorithm.base import NNAlgorithmParams  # noqa: E402
from pfl.algorithm.federated_averaging import FederatedAveraging  # noqa: E402
from pfl.callback.base import TrainingProcessCallback  # noqa: E402
from pfl.data.dataset import Dataset  # noqa: E402
from pfl.data.federated_dataset import FederatedDataset  # noqa: E402
from pfl.hyperparam.base import NNTrainHyperParams  # noqa: E402
from pfl.metrics import Metrics  # noqa: E402
from pfl.model.pytorch import PyTorchModel  # noqa: E402
from torch import nn  # noqa: E402


class User(Dataset):
    """The given batches; as long as the client has images, which is its weight in the average."""

    def __init__(self, work: Work, t: int, client: int):
        super().__init__(raw_data=(), user_id=str(client))
        self.work, self.t, self.client = work, t, client

    def __len__(self) -> int:
        return len(self.work.parts[self.client])

    def iter(self, batch_size: int | None):  # noqa: A003
        return self.work.batches(self.t, self.client)


class Rounds(TrainingProcessCallback):
    """Takes turns, in the first process; the others follow it."""

    def __init__(self, work: Work, turns: Turns | None):
        self.work, self.turns = work, turns

    def begin(self):
        """All processes wait: else the others would train the next round while it is somebody else's turn."""
        if self.turns:
            self.turns.wait()
        if PROCESSES > 1:
            torch.distributed.barrier()

    def after_central_iteration(self, aggregate_metrics, model, *, central_iteration: int):
        if self.turns:
            self.turns.over()
        if central_iteration < self.work.rounds:  # counted from 1, see below
            self.begin()
        return False, Metrics()


def train(work: Work, turns: Turns | None, options: dict) -> nn.Module:
    net = work.network()
    net.loss = lambda x, y: F.cross_entropy(net(x), y)
    net.metrics = lambda x, y: {}
    model = PyTorchModel(net, torch.optim.SGD, torch.optim.SGD(net.parameters(), lr=1.0))
    who = ((t, k) for t in range(work.rounds) for k in work.cohort(t))
    users = FederatedDataset(lambda user: User(work, *user), lambda: next(who))
    backend = SimulatedBackend(users, users, postprocessors=[WeightByDatapoints()])
    cohort = work.settings["clients_per_round"]
    # pfl evaluates in iteration 0 whatever the frequency: so the iterations are counted from 1.
    algorithm = FederatedAveraging()
    algorithm._current_central_iteration = 1
    params = NNAlgorithmParams(
        central_num_iterations=work.rounds + 1,
        evaluation_frequency=work.rounds + 1,
        train_cohort_size=cohort,
        val_cohort_size=None,
    )
    local = NNTrainHyperParams(
        local_batch_size=work.settings["batch_size"], local_num_epochs=1, local_learning_rate=work.settings["lr"]
    )
    rounds = Rounds(work, turns)
    rounds.begin()
    algorithm.run(params, backend, model, local, callbacks=[rounds], send_metrics_to_platform=False)
    return net


if __name__ == "__main__":
    if RANK == 0:
        main(train, "pfl")
    else:
        torch.set_num_threads(1)
        train(Work(sys.argv[1]), None, {})
