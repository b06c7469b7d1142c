"""Draw the README's picture, ``book/_static/cover.png``, from recorded results: ``python book/cover.py``."""

from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd

import fedlib as fl

HERE = Path(__file__).resolve().parent


def main() -> None:
    result = fl.claims.load_results(HERE / "results")["02_layer_normalization"]["cpu"]
    runs = {label: [pd.DataFrame(run) for run in result["curves"][f"at the paper's rate: {method}"]]
            for label, method in (("LN", "FedLN"), ("FN", "FedFN"), ("no norm", "FedAvg"))}
    with fl.plots.style():
        ax = plt.subplots(figsize=(8, 3.6))[1]
        ax.set(title="CIFAR-10, ten clients with one class each: FedAvg, by norm", ylim=(0, 55))
        fl.plots.curves(runs, scale=100, ylabel="test accuracy (%)", ax=ax)
        ax.figure.savefig(HERE / "_static" / "cover.png", dpi=120)


if __name__ == "__main__":
    main()
