"""Peak memory of birder-ray over N, 2 N and 4 N images: of all its processes, and of the driver alone.

    python benchmarks/memory.py [--network hgnet_v2_b2] [--images 640] [--json FILE]

Every run is new, with a Ray of its own. PSS counts pages that processes share, as those of Ray's object store, once;
what reading it costs makes the rates here lower than those of throughput.py.
"""

import tempfile
from pathlib import Path

from measuring import PSS, Found, note, publish
from photos import as_tars
from throughput import NETWORKS, OURS, arguments, prepare, rounds, score


def main() -> None:
    parser = arguments(__doc__)
    parser.set_defaults(network="efficientnet_lite0", rounds=1)
    told = parser.parse_args()
    smallest = told.images or NETWORKS[told.network].images // 2
    found: Found = {}
    with tempfile.TemporaryDirectory(prefix="br-bench-") as folder:
        checkpoint = prepare(Path(folder), told)
        for _ in range(told.rounds):
            for images in (smallest, 2 * smallest, 4 * smallest):
                told.images = images
                tars = Path(folder, f"tars-{images}")
                source = {"uri": str(tars if tars.exists() else as_tars(tars, images))}
                note(found, f"{OURS}, {images:,} images", score(Path(folder), checkpoint, source, told, pss=True))
    network = NETWORKS[told.network]
    title = f"Memory: {network.title} at {network.size_px} px, {told.engine} engine, {rounds(told)}"
    publish(title, found, told.json, plotted=PSS)


if __name__ == "__main__":
    main()
