"""Compare unbalanced transport with Hungarian matching: train the same small DETR with each, about a minute each.

Nothing is needed but this repository: Color Boxes are generated, written as a COCO folder and read back from it. The
data, the trainings and their pictures go to `runs/demo`; data that are complete are not written again.
"""

from pathlib import Path
from typing import Any

import train_detr

from uotod.datasets import ColorBoxes, write_coco

FOLDER, SIZE, STEPS, SEED = Path("runs/demo"), (128, 128), 500, 0
SPLITS = {"train": 2000, "val": 200, "test": 500}
MATCHERS = ("UnbalancedSinkhorn", "Hungarian")


def main() -> None:
    """Write the data, train with both matchers and print one table."""
    write_data(FOLDER / "data")
    metrics = [train(matcher) for matcher in MATCHERS]
    print(f"\n{'matcher':20s}{'AP50':>7s}{'AP':>7s}{'seconds':>9s}{'steps':>7s}")
    for row in metrics:
        print(f"{row['matcher']:20s}{row['AP50']:7.3f}{row['AP']:7.3f}{row['seconds']:9.0f}{row['step']:7d}")
    print(f"\nPictures: curve.png and predictions.png in {' and '.join(str(FOLDER / name) for name in MATCHERS)}")


def write_data(folder: Path) -> None:
    """Write the splits that are not there yet; a split that was interrupted is not there."""
    for part, (split, length) in enumerate(SPLITS.items()):
        if not (folder / "annotations" / f"instances_{split}.json").is_file():
            print(f"writing {length} images to {folder} ({split})", flush=True)
            write_coco(ColorBoxes(length, size=SIZE, num_classes=8, max_boxes=6, seed=3 * SEED + part), folder, split)


def train(matcher: str) -> dict[str, Any]:
    """Train with a matcher and return the metrics."""
    options = {
        "matcher": matcher,
        "data": FOLDER / "data",
        "size": f"{SIZE[0]}x{SIZE[1]}",
        "steps": STEPS,
        "seed": SEED,
    }
    arguments = [f"--{name}={value}" for name, value in options.items()]
    return train_detr.main([*arguments, "--no-augment", f"--out={FOLDER / matcher}"])


if __name__ == "__main__":
    main()
