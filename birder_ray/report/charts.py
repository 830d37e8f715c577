"""The charts of a report, as `page.figures` has them."""

from collections.abc import Mapping, Sequence

from birder_ray.page.figures import BLUE, GREY, GROUPS, LONGEST, ORANGE, as_json, blank, shown
from birder_ray.report.facts import Histogram
from birder_ray.report.pace import Work
from birder_ray.report.vectors import Cloud, Level

_UNITS = [("days", 86_400.0), ("hours", 3600.0), ("minutes", 60.0), ("seconds", 1.0)]


def throughput(work: Work) -> str:
    """Images per second over the time worked, run after run; a line where a run begins."""
    last = work.stretches[-1]
    name, unit = next(each for each in _UNITS if each[1] <= max(1.0, (last.offset + last.length) / 3))
    figure = blank(f"{name} of work", "images/s", height=300)
    for stretch in work.stretches:
        x = [time / unit for time in stretch.times]
        hover = f"{shown(stretch.run or 'run')}<br>%{{y:,.1f}} images/s<extra></extra>"
        figure.add_scatter(x=x, y=stretch.rates, mode="lines+markers", line_color=BLUE, hovertemplate=hover)
        if stretch.offset:
            figure.add_vline(stretch.offset / unit, line_dash="dot", line_color=ORANGE)
    return as_json(figure.update_yaxes(rangemode="tozero"))


def steps(work: Work) -> str:
    """Seconds of all workers, by step."""
    figure = blank("seconds of all workers", None, height=220)
    ordered = sorted(work.totals.seconds.items(), key=lambda item: item[1])
    colours = [
        ORANGE if step == work.totals.slowest else BLUE if step in work.totals.steps else GREY[0] for step, _ in ordered
    ]
    names, values = [shown(step) for step, _ in ordered], [round(spent, 2) for _, spent in ordered]
    figure.add_bar(
        x=values, y=names, orientation="h", marker_color=colours, hovertemplate="%{y}: %{x:,.2f} s<extra></extra>"
    )
    return as_json(figure)


def classes(counts: Mapping[str, int]) -> str:
    """Images by class, the most frequent at the top."""
    figure = blank("images", None, height=90 + 20 * len(counts))
    names = [*counts][::-1]
    figure.add_bar(
        x=[counts[name] for name in names],
        y=[*range(len(names))],
        customdata=[shown(name) for name in names],
        orientation="h",
        marker_color=BLUE,
        hovertemplate="%{customdata}: %{x:,}<extra></extra>",
    )
    labels = [shown(name, LONGEST) for name in names]
    return as_json(figure.update_yaxes(tickvals=[*range(len(names))], ticktext=labels))


def ranks(counts: Mapping[str, int]) -> str:
    """Rank-abundance: images of the most frequent class, of the second, ...; the vertical axis is logarithmic."""
    figure = blank("rank of the class", "images", height=320)
    values = [*counts.values()]
    mode = "lines+markers" if len(values) <= 100 else "lines"
    hover = "rank %{x}: %{y:,} images<extra></extra>"
    figure.add_scatter(x=[*range(1, len(values) + 1)], y=values, mode=mode, line_color=BLUE, hovertemplate=hover)
    return as_json(figure.update_yaxes(type="log", dtick=1))


def histogram(found: Histogram, title: str, colour: str) -> str:
    """Images by probability or entropy."""
    figure = blank(title, "images", height=280)
    width = found.top / len(found.counts)
    middles = [round((bin_ + 0.5) * width, 4) for bin_ in range(len(found.counts))]
    hover = "around %{x:.2f}: %{y:,} images<extra></extra>"
    figure.add_bar(x=middles, y=found.counts.tolist(), width=width, marker_color=colour, hovertemplate=hover)
    return as_json(figure.update_layout(bargap=0).update_xaxes(range=[0, found.top]))


def scatter(cloud: Cloud, groups: Sequence[str], short: Mapping[str, str]) -> str:
    """The map of embeddings: a trace for each of the classes `groups`, and one for all others.

    The text of a point is its sample, class and probability, `<br>` between them.
    """
    axes = [f"component {axis} ({share:.1%} of the variance)" for axis, share in enumerate(cloud.explained, 1)]
    figure = blank(axes[0], axes[1], height=520)
    places = cloud.places.tolist()
    told = cloud.predictions or [""] * len(places)
    odds = ["none" if each is None else f"{each:.3f}" for each in cloud.probabilities] or [""] * len(places)
    texts = ["<br>".join(map(shown, each)) for each in zip(cloud.samples, told, odds, strict=True)]
    for name, (colour, symbol) in [("", GREY), *zip(groups, GROUPS, strict=False)]:
        rows = [row for row, each in enumerate(told) if (each == name if name else each not in groups)]
        if rows:
            figure.add_scatter(
                x=[places[row][0] for row in rows],
                y=[places[row][1] for row in rows],
                text=[texts[row] for row in rows],
                mode="markers",
                marker={"color": colour, "symbol": symbol, "size": 8},
                name=shown(short.get(name, name), LONGEST) if name else "other classes" if groups else "images",
                hovertemplate="%{text}<extra></extra>",
            )
    legend = {"orientation": "h", "y": -0.15, "yanchor": "top", "x": 0}
    return as_json(figure.update_layout(dragmode="select", showlegend=True, legend=legend))


def levels(found: Sequence[Level]) -> str:
    """Mean of each feature level by pooling; the bar is the standard deviation between images."""
    figure = blank(None, "activation", height=340)
    for pooling, (colour, symbol) in zip(dict.fromkeys(each.pooling for each in found), GROUPS, strict=False):
        these = [each for each in found if each.pooling == pooling]
        figure.add_scatter(
            x=[shown(each.level) for each in these],
            y=[float(f"{each.mean:.5g}") for each in these],
            error_y={"type": "data", "array": [float(f"{each.within:.5g}") for each in these], "thickness": 1.5},
            mode="lines+markers",
            line_color=colour,
            marker={"symbol": symbol, "size": 9},
            name=shown(pooling),
            hovertemplate="%{x} %{fullData.name}: %{y:.4g} ± %{error_y.array:.2g}<extra></extra>",
        )
    legend = {"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0}
    return as_json(figure.update_layout(showlegend=True, legend=legend))
