"""Top-1 of real weights on real photos: birder alone, one photo at a time, and birder-ray on the same folder.

    python benchmarks/accuracy.py                 birder's own loop
    python benchmarks/accuracy.py --birder-ray    both, and how far they are apart

The photos' names carry their ImageNet class (`n01514668_cock.JPEG`). The birder-ray run uses `--decoder pil`, which
is bit-equal in pixels to birder's loop, so that the two must agree; `--decoder torchvision` compares the default.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pyarrow.parquet as pq
from torchvision.models._meta import _IMAGENET_CATEGORIES as CLASSES

from birder_ray.demo import NETWORK, efficientnet_lite_checkpoint

PHOTOS = Path(__file__).resolve().parents[2] / "shared" / "photos"

Predictions = dict[str, tuple[str, float]]  # file name -> class, probability


def plain_name(name: str) -> str:
    return name.lower().replace(" ", "_").replace("-", "_").replace("'", "")


def true_class(photo: str) -> str:
    """The class that a file name carries, in the spelling of the checkpoint."""
    return {plain_name(name): name for name in CLASSES}[plain_name(Path(photo).stem.partition("_")[2])]


def birder_loop(checkpoint: Path, photos: list[Path]) -> Predictions:
    """What birder's documentation shows: `infer_image`, one photo after the other."""
    import birder
    import torch
    from birder.inference.classification import infer_image
    from birder.model_registry import registry
    from PIL import Image

    saved = torch.load(checkpoint, map_location="cpu", weights_only=True)
    net = registry.net_factory(NETWORK, len(saved["class_to_idx"]))
    net.load_state_dict(saved["state"])
    net.eval()
    transform = birder.classification_transform((224, 224), saved["rgb_stats"], center_crop=0.875, simple_crop=True)
    names = {index: name for name, index in saved["class_to_idx"].items()}
    predictions = {}
    for photo in photos:
        with torch.inference_mode(), Image.open(photo) as image:
            probabilities, _ = infer_image(net, image.convert("RGB"), transform)
        best = int(probabilities[0].argmax())
        predictions[photo.name] = (names[best], float(probabilities[0][best]))
    return predictions


def birder_ray(checkpoint: Path, folder: Path, destination: Path, decoder: str) -> Predictions:
    """The command line on the whole folder."""
    command = [str(Path(sys.executable).with_name("birder-ray")), "score", str(folder)]
    command += ["--model", str(checkpoint), "--network", NETWORK, "--output", str(destination)]
    command += ["--center-crop", "0.875", "--simple-crop", "--decoder", decoder]
    subprocess.run(command, check=True)
    rows = pq.read_table(destination / "predictions", columns=["sample", "prediction", "probability"]).to_pylist()
    return {Path(row["sample"]).name: (row["prediction"], row["probability"]) for row in rows}


def report(label: str, predictions: Predictions, photos: list[Path], seconds: float) -> None:
    right = sum(predictions.get(photo.name, ("", 0))[0] == true_class(photo.name) for photo in photos)
    rate = len(photos) / seconds
    print(f"{label:>22}: top-1 {right / len(photos):.3f} ({right} of {len(photos)}), {rate:.1f} images/s with start-up")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path, default=PHOTOS, help="folder of n<wordnet id>_<class>.JPEG files")
    parser.add_argument("--birder-ray", action="store_true", help="run birder-ray too, and compare")
    parser.add_argument("--decoder", choices=["pil", "torchvision"], default="pil")
    arguments = parser.parse_args()
    photos = sorted(path for path in arguments.photos.glob("n*_*") if path.is_file())
    if not photos:
        sys.exit(f"{arguments.photos}: no photos named n<wordnet id>_<class>.JPEG here")

    with tempfile.TemporaryDirectory() as folder:
        checkpoint = Path(folder) / f"{NETWORK}.pt"
        efficientnet_lite_checkpoint(checkpoint)
        start = time.perf_counter()
        alone = birder_loop(checkpoint, photos)
        report("birder alone", alone, photos, time.perf_counter() - start)
        if arguments.birder_ray:
            start = time.perf_counter()
            ours = birder_ray(checkpoint, arguments.photos, Path(folder) / "scores", arguments.decoder)
            report(f"birder-ray ({arguments.decoder})", ours, photos, time.perf_counter() - start)
            same = [name for name in alone if name in ours and ours[name][0] == alone[name][0]]
            apart = max((abs(ours[name][1] - alone[name][1]) for name in same), default=0.0)
            print(f"same class for {len(same)} of {len(alone)}; their probabilities differ by at most {apart:.2e}")


if __name__ == "__main__":
    main()
