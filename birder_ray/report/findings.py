"""What stands in those sections of a report that are about the tables."""

import base64
from collections import Counter
from collections.abc import Mapping
from itertools import islice

from birder_ray.page import details, figure, number, paragraph, plural, table, text
from birder_ray.page.figures import BLUE, GREEN
from birder_ray.report import charts
from birder_ray.report.facts import Facts, Histogram, Image, Predicted
from birder_ray.report.thumbnails import Thumbnails
from birder_ray.schema import EMBEDDINGS, FEATURES, OUTPUT_TABLES

_BARS, _LISTED, _GROUPS = 30, 200, 6


def classes(facts: Facts, seen: Predicted) -> str:
    if not seen.counts:
        return paragraph("No image was scored.")
    total = sum(seen.counts.values())
    top = dict(islice(seen.counts.items(), _BARS))
    rows = [(name, count, 100 * count / total) for name, count in islice(seen.counts.items(), _LISTED)]
    most, times = rows[0][0], rows[0][1]
    shown = {facts.short.get(name, name): count for name, count in top.items()}
    many = f"the {_BARS} most frequent of " if len(seen.counts) > _BARS else ""
    said = (
        f"Images by predicted class, {many}{len(seen.counts):,} seen. "
        f"The most frequent is {facts.short.get(most, most)}, {times:,} of {total:,}."
    )
    curve = (
        f"Rank-abundance: the classes from the most to the least frequent. {len(seen.counts):,} of {seen.classes:,} "
        f"classes were seen; as even shares, the counts are worth {number(round(seen.effective, 1))} classes."
    )
    limit = f", the first {_LISTED}" if len(seen.counts) > _LISTED else ""
    numbers = details("The numbers", table(f"Images by class{limit}", ("class", "images", "%"), rows))
    once = sum(count == 1 for count in seen.counts.values())
    return (
        figure("classes-chart", charts.classes(shown), said, numbers)
        + figure("ranks", charts.ranks(seen.counts), curve, "")
        + paragraph(f"Seen once: {plural(once, 'class', 'classes')}.", "soft")
    )


def certainty(seen: Predicted) -> str:
    if not seen.counts:
        return paragraph("No image was scored.")
    half = int(seen.probabilities.counts[len(seen.probabilities.counts) // 2 :].sum())
    total = int(seen.probabilities.counts.sum())
    odds = f"Probability of the predicted class. {half:,} of {total:,} images are at 0.5 or above."
    unsure = (
        "Entropy of all probabilities, in nats: 0 is certain, "
        f"{number(round(seen.entropies.top, 2))} is guessing among {seen.classes:,} classes."
    )
    return (
        '<div class="pair">'
        + figure(
            "probability",
            charts.histogram(seen.probabilities, "probability", BLUE),
            odds,
            _bins(seen.probabilities),
        )
        + figure("entropy", charts.histogram(seen.entropies, "entropy, nats", GREEN), unsure, _bins(seen.entropies))
        + "</div>\n"
    )


def _bins(found: Histogram) -> str:
    width = found.top / len(found.counts)
    rows = [
        (f"{at * width:.2f} to {(at + 1) * width:.2f}", int(count)) for at, count in enumerate(found.counts) if count
    ]
    return details("The numbers", table("Images by bin, empty ones left out", ("from, to", "images"), rows))


def pictures(seen: Predicted, pictures: Thumbnails) -> str:
    groups = [
        ("Most certain", seen.certain),
        ("Least certain", seen.unsure),
        ("Most certain of each frequent class", seen.best),
    ]
    body = "".join(
        f"<h3>{title}</h3>\n<ul class=pictures>{''.join(_picture(each, pictures.jpegs) for each in images)}</ul>\n"
        for title, images in groups
        if images
    )
    left_out = sum(pictures.left_out.values())
    if left_out:
        reasons = [(reason, count) for reason, count in islice(pictures.left_out.items(), _LISTED)]
        body += paragraph(
            f"Not read from the source again, and so without a picture: {plural(left_out, 'image')}.", "note"
        )
        body += details("Why", table("Images without a picture", ("reason", "images"), reasons))
    return body or paragraph("No image was chosen to be shown.")


def _picture(image: Image, jpegs: Mapping[str, bytes]) -> str:
    data = jpegs.get(image.sample)
    said = f"{image.sample}: {image.prediction}, {image.probability:.3f}"
    shown = (
        f'<img src="data:image/jpeg;base64,{base64.b64encode(data).decode()}" alt="{text(said)}">'
        if data
        else '<div class="none">no picture</div>'
    )
    name = f"{text(image.prediction)} {image.probability:.3f}<br><small>{text(image.sample)}</small>"
    return f"<li>{shown}<p>{name}</p></li>"


def embeddings(facts: Facts) -> str:
    cloud = facts.cloud
    if cloud is None:
        return absent(facts, EMBEDDINGS)
    if not cloud.explained:
        return paragraph("There are too few embeddings, or all are the same, so there is no map.")
    ordered = sorted(Counter(cloud.predictions).items(), key=lambda item: (-item[1], item[0]))
    groups = [name for name, _ in ordered[:_GROUPS]]
    data = charts.scatter(cloud, groups, facts.short)
    said = (
        f"The first two principal components of {len(cloud.samples):,} of {cloud.total:,} embeddings, chosen by a "
        f"hash; they hold {sum(cloud.explained):.0%} of the variance. Colours and shapes are the most frequent classes."
    )
    traces = [
        *(["other classes"] if len(ordered) > len(groups) else []),
        *(facts.short.get(name, name) for name in groups),
    ]
    options = "".join(f'<option value="{at}">{text(name)}</option>' for at, name in enumerate(traces or ["all images"]))
    alternative = (
        '<p><label for="group">Select on the map, or list the images of </label>'
        f'<select id="group"><option value="">nothing</option>{options}</select></p>'
        '<div id="picked" aria-live="polite"></div>'
        + details(
            "The numbers",
            table("Images on the map by class", ("class", "images"), ordered[:_LISTED]) if ordered else "",
        )
    )
    return figure("map", data, said, alternative, role="group")


def features(facts: Facts) -> str:
    found = facts.levels and facts.levels.each
    if found is None:
        return absent(facts, FEATURES)
    if not found:
        return paragraph("No image was scored.")
    rows = [(f"{e.level} {e.pooling}", e.channels, e.mean, e.apart, e.within, e.still) for e in found]
    head = ("level, pooling", "channels", "mean", "between channels", "between images", "channels without variance")
    said = (
        "Mean activation of each level over all channels and images. A bar is the standard deviation of a "
        "channel between images. A channel without variance tells nothing apart."
    )
    return figure(
        "levels", charts.levels(found), said, table("Feature levels; deviations are standard deviations", head, rows)
    )


def absent(facts: Facts, wanted: str) -> str:
    outputs = ",".join(name for name in OUTPUT_TABLES if name in facts.manifest["recipe"]["tables"] or name == wanted)
    return paragraph(
        f"This run has no table <code>{wanted}</code>. The same command with <code>--outputs {outputs}</code> adds it."
    )
