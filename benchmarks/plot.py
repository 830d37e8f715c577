"""A bar chart, FILE.png, beside every FILE.json that the benchmarks wrote.

    python benchmarks/plot.py [benchmarks/results]

Bars are medians of the figure that the JSON file calls its main one, whiskers the range over the rounds. birder-ray's
are blue, the others grey: a difference that colour-blind readers see, too.
"""

import json
import statistics
import sys
import textwrap
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

OURS, OTHERS, INK = "#0072B2", "#BBBBBB", "#333333"  # blue of Okabe and Ito
WIDTH_IN, BAR_IN, DPI = 8.0, 0.34, 110  # 880 px, as wide as GitHub shows a README


def main() -> None:
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).with_name("results")
    for file in sorted(folder.glob("*.json")):
        told = json.loads(file.read_text())
        if "plotted" in told:  # else a script of plots of its own
            draw(told, file.with_suffix(".png"))
            print(file.with_suffix(".png"))


def draw(told: dict, file: Path) -> None:
    figure, made = told["plotted"], told["made"]
    found = {name: figures[figure] for name, figures in told["found"].items() if figure in figures}
    middle = [statistics.median(values) for values in found.values()]
    least = [value - min(values) for value, values in zip(middle, found.values(), strict=True)]
    most = [max(values) - value for value, values in zip(middle, found.values(), strict=True)]
    colours = [OURS if name.startswith("birder-ray") else OTHERS for name in found]
    plt.rcParams.update({"font.family": "DejaVu Sans", "font.size": 10, "text.color": INK, "axes.labelcolor": INK})
    canvas, axes = plt.subplots(figsize=(WIDTH_IN, 1.5 + BAR_IN * len(found)), layout="constrained")
    bars = axes.barh(list(found), middle, color=colours, height=0.7)
    axes.errorbar(middle, list(found), xerr=[least, most], fmt="none", ecolor=INK, elinewidth=1.2)
    for bar, value, above in zip(bars, middle, most, strict=True):
        place = (value + above, bar.get_y() + bar.get_height() / 2)
        axes.annotate(f"{value:.3g}", place, xytext=(6, 0), textcoords="offset points", va="center")
    axes.invert_yaxis()  # the first contestant on top
    axes.margins(x=0.12)
    axes.set_xlim(left=0)
    axes.set_xlabel(figure)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="y", length=0)
    machine = f"{made['cpu']}, {made['cores']} cores, {made['when'][:10]}"
    canvas.suptitle("\n".join(textwrap.wrap(told["title"], 80)), x=0.01, ha="left", fontsize=11, fontweight="bold")
    axes.set_title(machine, loc="left", fontsize=9)
    canvas.savefig(file, dpi=DPI)
    plt.close(canvas)


if __name__ == "__main__":
    main()
