"""The training loop: options and a detector come in, a folder of results goes out.

The folder holds `checkpoint.pt`, `metrics.json`, `curve.png` and `predictions.png`.
"""

import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from itertools import islice
from typing import Any, NamedTuple

import torch
from _checkpoint import Stateful, load_checkpoint, save_checkpoint, write_json
from _data import Data, EpochBatches, Images, augment, epoch_generator, load_data, make_loader, pad_fractions
from _options import Options, fail, parse_options
from _pictures import Example, draw_curve, draw_examples
from torch import Tensor, nn
from torch.utils.data import BatchSampler
from tqdm import tqdm

from uotod.datasets import CocoDetection, collate
from uotod.eval import coco_ap

__all__ = ["Detections", "Detector", "Outputs", "parse_options", "train"]

WARM_UP, CLIP, WEIGHT_DECAY = 100, 1.0, 1e-4
EVALUATIONS, EXAMPLES = 12, 4  # how often AP is measured while training, and how many images are drawn after it
Outputs = dict[str, Any]


class Detections(NamedTuple):
    """What was found in one image: (N, 4) boxes, xyxy, as fractions of the image, (N,) scores and (N,) labels."""

    boxes: Tensor
    scores: Tensor
    labels: Tensor


class Detector(NamedTuple):
    """A model with its loss.

    Attributes:
        model: turns (B, 3, H, W) images in [0, 1] into what `criterion` reads, with boxes as fractions of the image,
            and with "anchors" if there are any.
        criterion: the loss of the outputs, padded targets and the anchors.
        plan: the plan of the same, for pictures.
        detect: reads the detections of each image from what the model returns.
    """

    model: nn.Module
    criterion: nn.Module
    plan: Callable[[Outputs, dict[str, Tensor], Tensor | None], Tensor]
    detect: Callable[[Outputs], list[Detections]]


@dataclass
class Progress:
    """How far a run is; the CPU's seconds are those of this process, evaluation not included."""

    epoch: int = 0
    step: int = 0
    seconds: float = 0.0
    cpu_seconds: float = 0.0
    history: list[dict[str, float]] = field(default_factory=list)


def train(options: Options, build: Callable[[int], Detector]) -> dict[str, Any]:
    """Train a detector, measure it and write the results to `options.out`.

    Args:
        options: the command line.
        build: makes a detector for a number of classes.

    Returns:
        What `metrics.json` holds.
    """
    torch.set_num_threads(options.threads)
    data = load_data(options)
    torch.manual_seed(options.seed)
    training = Training(options, data, build(len(data.class_names)))
    title, progress = f"{options.program}, {options.rule}", training.progress
    print(f"{title}: {training.steps} steps in {training.epochs} epochs, to {options.out}", flush=True)
    try:
        training.fit()
    except KeyboardInterrupt:
        fail(f"interrupted; --resume continues after epoch {progress.epoch} of {training.epochs}")
    result = training.evaluate(data.test)
    metrics = {
        "program": options.program,
        "matcher": options.matcher,
        "recipe": options.recipe,
        "data": "Color Boxes" if options.data is None else options.data.resolve().name,
        "split": data.test_split,
        **result,
        **asdict(progress),
        "parameters": sum(parameter.numel() for parameter in training.model.parameters()),
    }
    write_json(options.out / "metrics.json", metrics)
    draw_curve(options.out / "curve.png", progress.history, title)
    draw_examples(options.out / "predictions.png", training.examples(), data.class_names, title)
    scores = f"AP50 {result['AP50']:.3f}, AP {result['AP']:.3f}"
    print(f"{title}: {scores} on {data.test_split} after {progress.cpu_seconds:.0f} CPU seconds", flush=True)
    return metrics


def learning_rate(steps: int) -> Callable[[int], float]:
    """Return the factor of the learning rate at each step: a linear warm-up, then half a cosine down to 0."""
    warm_up = min(WARM_UP, steps // 5)

    def factor(step: int) -> float:
        if step < warm_up:
            return (step + 1) / (warm_up + 1)
        return (1 + math.cos(math.pi * (step - warm_up) / max(steps - warm_up, 1))) / 2

    return factor


class Training:
    """A run: what is trained, on what, and how far it is."""

    def __init__(self, options: Options, data: Data, detector: Detector) -> None:
        self.data, self.detect, self.plan, self.options = data, detector.detect, detector.plan, options
        self.device = torch.device(options.device)
        self.model = detector.model.to(self.device)
        self.criterion = detector.criterion.to(self.device)
        self.batches = EpochBatches(len(data.train), options.batch_size, options.seed)
        self.loader = make_loader(data.train, self.batches, options)
        self.steps = int(min(options.steps or math.inf, len(self.batches) * (options.epochs or math.inf)))
        self.epochs = math.ceil(self.steps / len(self.batches))
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=options.lr, weight_decay=WEIGHT_DECAY)
        self.scheduler = torch.optim.lr_scheduler.LambdaLR(self.optimizer, learning_rate(self.steps))

        names = ("matcher", "recipe", "size", "batch_size", "lr", "seed", "amp", "augment")
        self.run = {"program": options.program}
        self.run |= {f"--{name.replace('_', '-')}": str(getattr(options, name)) for name in names}
        self.run |= {"--steps": str(self.steps), "--data": f"{len(data.train)} images of {', '.join(data.class_names)}"}
        self.parts: dict[str, Stateful] = {
            "model": self.model,
            "optimizer": self.optimizer,
            "scheduler": self.scheduler,
        }
        self.path = options.out / "checkpoint.pt"
        if options.resume:
            self.progress = Progress(**load_checkpoint(self.path, self.run, self.parts))
            return
        self.progress = Progress()
        try:
            options.out.mkdir(parents=True, exist_ok=True)
            self.save()  # an interrupted first epoch can be resumed, too
        except OSError as error:
            fail(f"--out {options.out}: {error}")

    def save(self) -> None:
        """Write the checkpoint."""
        save_checkpoint(self.path, self.run, self.parts, asdict(self.progress))

    def fit(self) -> None:
        """Train the epochs that are left; each ends with a checkpoint."""
        every, progress = math.ceil(self.epochs / EVALUATIONS), self.progress
        with tqdm(total=self.steps, initial=progress.step, unit="step", disable=None) as bar:
            while progress.epoch < self.epochs:
                seconds, cpu_seconds, step = time.perf_counter(), time.process_time(), progress.step
                loss = self.fit_epoch(bar)
                progress.epoch += 1
                progress.step = min(step + len(self.batches), self.steps)
                progress.seconds += time.perf_counter() - seconds
                progress.cpu_seconds += time.process_time() - cpu_seconds
                entry: dict[str, float] = {"epoch": progress.epoch, "step": progress.step, "loss": loss}
                if progress.epoch % every == 0 or progress.epoch == self.epochs:
                    result = self.evaluate(self.data.watch)
                    entry |= {"AP": result["AP"], "AP50": result["AP50"]}
                    bar.write(
                        f"epoch {progress.epoch:3d}/{self.epochs}  step {progress.step:5d}  loss {loss:6.3f}  "
                        f"AP50 {result['AP50']:.3f}  AP {result['AP']:.3f}  {progress.cpu_seconds:4.0f} CPU seconds"
                    )
                progress.history.append(entry)
                self.save()

    def fit_epoch(self, bar: Any) -> float:
        """Train one epoch, the last one only up to the number of steps, and return the mean loss."""
        self.model.train()
        epoch = self.batches.epoch = self.progress.epoch
        if isinstance(self.data.train, CocoDetection):
            self.data.train.set_epoch(epoch)
        generator = epoch_generator(self.options.seed, epoch)
        losses = []
        for _, (images, targets) in zip(range(self.steps - self.progress.step), self.loader, strict=False):
            expected = pad_fractions(targets)
            if self.options.augment and self.options.data is not None:  # generated images vary enough
                images, expected = augment(images, expected, generator)
            losses.append(self.fit_step(images, self.to_device(expected)))
            bar.update()
        return float(torch.stack(losses).mean())

    def fit_step(self, images: Tensor, targets: dict[str, Tensor]) -> Tensor:
        """Take one step of the optimiser and return the loss."""
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.options.amp):
            outputs = self.predict(images)
        loss: Tensor = self.criterion(outputs, targets, outputs.get("anchors"))
        self.optimizer.zero_grad()
        torch.autograd.backward(loss)
        nn.utils.clip_grad_norm_(self.model.parameters(), CLIP)
        self.optimizer.step()
        self.scheduler.step()
        return loss.detach()

    def predict(self, images: Tensor) -> Outputs:
        """Return what the model makes of a batch of images."""
        outputs: Outputs = self.model(images.to(self.device, memory_format=torch.channels_last, non_blocking=True))
        return outputs

    @torch.no_grad()
    def evaluate(self, dataset: Images) -> dict[str, float]:
        """Return the average precisions of COCO, measured in pixels of the images before they were resized."""
        self.model.eval()
        predictions, expected = [], []
        batches = BatchSampler(range(len(dataset)), self.options.batch_size, drop_last=False)
        for images, targets in make_loader(dataset, batches, self.options):
            for found, target in zip(self.detect(self.predict(images)), targets, strict=True):
                (height, width), (new_height, new_width) = target["orig_size"], target["size"]
                size = torch.tensor([width, height, width, height])
                boxes, scores, labels = (x.cpu() for x in found)
                predictions.append({"boxes": boxes * size, "scores": scores, "labels": labels})
                scale = size / torch.tensor([new_width, new_height, new_width, new_height])
                expected.append({**target, "boxes": target["boxes"] * scale})
        return coco_ap(predictions, expected, class_names=self.data.class_names)

    @torch.no_grad()
    def examples(self) -> list[Example]:
        """Return the first images of the test split that have targets, with what was found and with their plans."""
        self.model.eval()
        dataset = self.data.test
        found = (sample for sample in map(dataset.__getitem__, range(len(dataset))) if len(sample[1]["labels"]))
        chosen = list(islice(found, EXAMPLES))
        if not chosen:
            return []
        images, targets = collate(chosen)
        outputs, expected = self.predict(images), self.to_device(pad_fractions(targets))
        plans = self.plan(outputs, expected, outputs.get("anchors")).cpu()
        height, width = images.shape[-2:]
        size = torch.tensor([width, height, width, height])
        examples = []
        for index, ((image, target), (boxes, scores, labels)) in enumerate(
            zip(chosen, self.detect(outputs), strict=True)
        ):
            plan = plans[index][:, [*range(len(target["labels"])), -1]]  # without padding
            matched = outputs["anchors"] if "anchors" in outputs else outputs["pred_boxes"][index]
            examples.append(
                Example(image, target, size * boxes.cpu(), scores.cpu(), labels.cpu(), size * matched.cpu(), plan)
            )
        return examples

    def to_device(self, targets: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return targets on the device of the model."""
        return {key: value.to(self.device, non_blocking=True) for key, value in targets.items()}
