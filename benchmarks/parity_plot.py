"""Draw the figure of docs/parity.md: the difference of each endpoint from TF-Slim, from a receipt of `mnv2 verify -o`.

python benchmarks/parity_plot.py weights/receipts/mobilenet_v2_1.0_224.json docs/parity.png
"""

import argparse
import json
from pathlib import Path

import matplotlib.pyplot as plt

#: Difference of TF-Slim with and without oneDNN: the worst endpoint, relative to its range.
TF_SLIM_NOISE = 5.1e-5


def main() -> None:
    """Draw one bar for each endpoint, in network order."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("receipt", type=Path)
    parser.add_argument("picture", type=Path)
    arguments = parser.parse_args()
    receipt = json.loads(arguments.receipt.read_text())
    endpoints = receipt["endpoints"]
    figure, axes = plt.subplots(figsize=(10, 3.6), layout="constrained")
    axes.bar(range(len(endpoints)), [max(endpoint["range_relative"], 1e-9) for endpoint in endpoints], color="#3b6ea8", width=0.8)
    axes.axhline(receipt["tolerance"], color="#b03a2e", label=f"`mnv2 verify` fails above {receipt['tolerance']:g}")
    axes.axhline(TF_SLIM_NOISE, color="#7f8c8d", linestyle="--", label="TF-Slim with and without oneDNN")
    axes.set_yscale("log")
    axes.set_ylabel("largest difference\n/ range of the endpoint")
    layers = [(i, endpoint["endpoint"]) for i, endpoint in enumerate(endpoints) if "/" not in endpoint["endpoint"]]
    axes.set_xticks([i for i, _ in layers], [name for _, name in layers], rotation=60, ha="right", fontsize=7)
    axes.set_title(f"{receipt['checkpoint']}: {len(endpoints)} endpoints against {receipt['reference']}", fontsize=10)
    axes.legend(fontsize=8, loc="upper right")
    axes.margins(x=0.01)
    figure.savefig(arguments.picture, dpi=110)


if __name__ == "__main__":
    main()
