"""Draw the README's picture, ``book/_static/cover.png``, from recorded results: ``python book/cover.py``."""

from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd

import fedlib as fl

HERE = Path(__file__).resolve().parent


def main() -> None:
    result = fl.claims.load_results(HERE / "results")[
        "02_layer_normalization"
    ]["cpu"]
    labels = {
        "FedLN": "LN",
        "FedFN": "FN",
        "FedYogi": "FedYogi",
        "FedAvg": "no norm",
    }
    with fl.plots.style():
        fig, axes = plt.subplots(1, 2, figsize=(9, 3.6), sharey=True)
        for ax, kind, title in zip(
            axes,
            ("at the paper's rate", "tuned"),
            (
                "At the paper's learning rate",
                "Each at its best learning rate",
            ),
            strict=True,
        ):
            runs = {
                label: [
                    pd.DataFrame(run)
                    for run in result["curves"][f"{kind}: {method}"]
                ]
                for method, label in labels.items()
                if f"{kind}: {method}" in result["curves"]
            }
            ax.set(title=title, ylim=(0, 55))
            fl.plots.curves(
                runs, scale=100, ylabel="test accuracy (%)", ax=ax
            )
        axes[1].set_ylabel("")
        fig.savefig(HERE / "_static" / "cover.png", dpi=120)


if __name__ == "__main__":
    main()
