"""Draw the README's picture, ``book/_static/cover.png``, from recorded results: ``python book/cover.py``."""

from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd

import fedlib as fl

HERE = Path(__file__).resolve().parent


PANELS = {
    "quick": "Digits, a small perceptron",
    "cpu": "CIFAR-10, the paper's CNN at half its width",
}
LABELS = {"FedLN": "LN", "FedFN": "FN", "FedAvg": "no norm"}


def main() -> None:
    results = fl.claims.load_results(HERE / "results")[
        "02_layer_normalization"
    ]
    with fl.plots.style():
        fig, axes = plt.subplots(1, 2, figsize=(9, 3.6))
        for ax, (preset, title) in zip(
            axes, PANELS.items(), strict=True
        ):
            curves = results[preset]["curves"]
            # the better of the rows without a norm
            plain = [
                name
                for name in curves
                if name.startswith("methods: FedAvg")
            ]
            names = {
                "FedAvg": max(
                    plain,
                    key=lambda name: sum(
                        run["accuracy"][-1] for run in curves[name]
                    ),
                )
            }
            ax.set_ylim(
                0, 100 if preset == "quick" else 40
            )  # first: labels stand where the lines end
            runs = {
                label: [
                    pd.DataFrame(run)
                    for run in curves[
                        names.get(name, f"methods: {name}")
                    ]
                ]
                for name, label in LABELS.items()
            }
            fl.plots.curves(
                runs, scale=100, ylabel="test accuracy (%)", ax=ax
            )
            ax.set_title(title)
        fig.savefig(HERE / "_static" / "cover.png", dpi=120)


if __name__ == "__main__":
    main()
