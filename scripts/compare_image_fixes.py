"""Editing against what else one could do about a wrong class, on the same corrections.

    python scripts/compare_image_fixes.py --data cifar-10-batches-py --plain resnet20-12fca82f.th \\
        --editable runs/cifar10-small/network-editable-chain3

Each correction gives a test image that the plain network gets wrong its true class. It is made by editing the editable
network, by editing the plain one, by fine-tuning the plain one on the corrected image, by training it further with
that image in every batch, and by a lookup table. Reported for each: does it hold; do augmented versions of the image
follow; what happens to other test images (error drawdown, predictions that changed); the seconds.

The test set is cut into three: images that are measured on, images that learning rates are chosen on, and the rest,
whose mistakes are corrected. So no corrected image is among those that are measured on.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor
from tqdm.auto import tqdm
from transformers import AutoModelForImageClassification, PreTrainedModel

from editable_hf import EditorConfig, edited
from editable_hf.baselines import fine_tune
from editable_hf.core.constraints import ClassConstraint
from editable_hf.core.editing import edit
from editable_hf.core.editors import Params
from editable_hf.core.functional import eval_mode
from editable_hf.data.atomic import write_atomically
from editable_hf.data.image_transforms import EvalTransform, TrainTransform, with_pixels
from editable_hf.data.images import IMAGENET_MEAN, IMAGENET_STD, ImageData, load_image_data
from editable_hf.evaluation.bootstrap import mean_row
from editable_hf.evaluation.edit_evaluator import EditRecord
from editable_hf.evaluation.error_evaluator import ErrorDrawdownEvaluator
from editable_hf.evaluation.records import read_records
from editable_hf.experiments.fix_methods import IMAGE_COLUMNS, Method, Request, best_rate, compare
from editable_hf.models import load_published_cifar_resnet

EDIT_RATES, TUNE_RATES, RETRAIN_RATES = (1e-5, 3e-5, 1e-4, 3e-4, 1e-3), (1e-5, 3e-5, 1e-4, 3e-4), (1e-4, 3e-4, 1e-3)
LARGEST_GROUP = 20  # fixes that are measured together: what they share runs once, and a kill loses no more


def by_editing(model: PreTrainedModel, config: EditorConfig, max_steps: int, request: Request, rate: float) -> Params:
    constraint = ClassConstraint({"pixel_values": request["image"]}, request["target"])
    return edit(model, constraint, config.build_editor(learning_rate=rate), config.layers, max_steps).params


def by_fine_tuning(
    model: PreTrainedModel, layers: str | list[str], max_steps: int, request: Request, rate: float
) -> Params:
    image, target = request["image"], request["target"]
    inputs = {"pixel_values": image, "labels": torch.tensor([target], device=model.device)}

    def holds(tuned: PreTrainedModel) -> bool:
        return int(classify(tuned, image)) == target

    return fine_tune(model, inputs, holds, layers=layers, learning_rate=rate, max_steps=max_steps).params


def by_retraining(
    model: PreTrainedModel, train: Dataset, args: argparse.Namespace, request: Request, rate: float
) -> Params:
    """Further updates, each on augmented training images and the corrected one.

    SGD with momentum, as such networks are trained. BatchNorm keeps its statistics: a fix is parameters alone, and
    Editable Training keeps them, too. The corrected image is as it is: no method sees versions of it that are counted.
    """
    trained = copy.deepcopy(model).eval()
    own = dict(trained.named_parameters())
    optimizer = torch.optim.SGD(own.values(), rate, momentum=0.9, weight_decay=1e-4)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(args.seed + request["image_index"])
        for _ in range(args.num_updates):
            drawn = train[torch.randint(len(train), (args.batch_size - 1,)).tolist()]
            images = torch.cat([drawn["pixel_values"].to(model.device), request["image"]])
            labels = torch.cat([drawn["labels"], torch.tensor([request["target"]])]).to(model.device)
            optimizer.zero_grad()
            trained(pixel_values=images, labels=labels).loss.backward()
            optimizer.step()
    return {name: param.detach() for name, param in own.items()}


def classify(model: PreTrainedModel, images: Tensor) -> Tensor:
    with eval_mode(model), torch.no_grad():
        return model(pixel_values=images).logits.argmax(-1)


class Comparison:
    """What all methods are measured on: corrections of the plain network's mistakes, and other test images."""

    def __init__(self, args: argparse.Namespace, data: ImageData, plain: PreTrainedModel):
        self.args, self.test, self.device = args, data.splits["test"], plain.device
        moments = (IMAGENET_MEAN, IMAGENET_STD) if args.normalization == "imagenet" else (data.mean, data.std)
        self.transform = EvalTransform(data.image_size, *moments)
        self.augment = TrainTransform(data.image_size, *moments, flip=data.horizontal_flips)
        self.train = with_pixels(data.splits["train"], self.augment)
        order = torch.randperm(len(self.test), generator=torch.Generator().manual_seed(args.seed)).tolist()
        chosen_on = args.num_images + args.num_validation_images
        self.parts = {"test": order[: args.num_images], "validation": order[args.num_images : chosen_on]}
        needed, rest = args.num_fixes + args.num_validation, order[chosen_on:]
        wrong = []
        if rest:
            evaluator = self._evaluator(plain, rest, "*")
            wrong = [rest[row] for row in (evaluator.before != evaluator.labels).nonzero().flatten().tolist()]
        if len(wrong) < needed:
            raise SystemExit(
                f"{needed} mistakes are to be corrected, but {args.plain} makes {len(wrong)} on the {len(rest)} test "
                "images that are left for it: lower the number of corrections, or of images that are measured on."
            )
        self.fixes, self.others = wrong[: args.num_fixes], wrong[args.num_fixes : needed]

    def fill(self, method: Method, layers: Sequence[str], folder: Path) -> None:
        """Writes `row.json` of a method and the records behind it; what a killed run left there is not repeated."""
        rate, tried, args = method.learning_rates[0], [], self.args
        if len(method.learning_rates) > 1:
            evaluator = self._evaluator(method.model, self.parts["validation"], layers)
            # A method that is measured with fewer corrections is tuned with fewer, too.
            others = self.others[: math.ceil(args.num_validation * method.num_fixes / args.num_fixes)]
            for rate in method.learning_rates:
                records = self._measure(method, others, evaluator, rate, folder / f"validation-alpha{rate:g}.jsonl")
                tried.append({"learning_rate": rate, **summarize(method.name, records)})
            rate = best_rate(tried, "drawdown")
        evaluator = self._evaluator(method.model, self.parts["test"], layers)
        records = self._measure(method, self.fixes[: method.num_fixes], evaluator, rate, folder / "fixes.jsonl")
        row = {**summarize(method.name, records), "learning_rate": rate, "error_rate": evaluator.error_rate}
        write_atomically(folder / "row.json", json.dumps({**row, "tried": tried}, indent=2) + "\n")

    def _evaluator(self, model: PreTrainedModel, indices: list[int], layers: Sequence[str]) -> ErrorDrawdownEvaluator:
        return ErrorDrawdownEvaluator(model, with_pixels(self.test.select(indices), self.transform), layers=layers)

    def _request(self, index: int) -> Request:
        row = self.test[index]
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(self.args.seed + index)
            versions = self.augment.pixels([row["image"]] * self.args.num_versions).to(self.device)
        image = self.transform.pixels([row["image"]]).to(self.device)
        return {"image_index": index, "target": row["label"], "image": image, "versions": versions}

    def _measure(
        self, method: Method, indices: list[int], evaluator: ErrorDrawdownEvaluator, rate: float, path: Path
    ) -> list[EditRecord]:
        """One record for each correction, also in `path`."""
        records = read_records(path)
        with tqdm(total=len(indices), initial=len(records), desc=f"{method.name}, {path.stem}", unit="fix") as bar:
            while len(records) < len(indices):
                group = indices[len(records) :][: min(LARGEST_GROUP, evaluator.group_size)]
                fixed = [corrected(method, self._request(index), rate) for index in group]
                moved = [params for params, _ in fixed if params]
                predictions = iter(evaluator.predict(moved, "images")[1:] if moved else ())
                for params, record in fixed:  # a lookup table changes nothing about other images
                    record |= damage(evaluator, next(predictions) if params else evaluator.before)
                with path.open("a", encoding="utf-8") as file:
                    file.writelines(json.dumps(record) + "\n" for _, record in fixed)
                records += [record for _, record in fixed]
                bar.update(len(fixed))
        return records


def corrected(method: Method, request: Request, rate: float) -> tuple[Params, EditRecord]:
    """The corrected parameters, and what they do to the image and its augmented versions."""
    model, target, record = method.model, request["target"], {key: request[key] for key in ("image_index", "target")}
    record["already_right"] = int(classify(model, request["image"])) == target
    record["augmented_before"] = share(classify(model, request["versions"]) == target)
    start, cpu_start = time.perf_counter(), time.process_time()
    params = method.fix(request, rate)
    record |= {"fix_seconds": time.perf_counter() - start, "cpu_seconds": time.process_time() - cpu_start}
    with edited(model, params):
        right = {key: classify(model, request[key]) == target for key in ("image", "versions")}
    if not params:  # the lookup table answers for the very image
        right = {key: each | (request[key] == request["image"]).flatten(1).all(1) for key, each in right.items()}
    return params, {**record, "holds": bool(right["image"]), "augmented": share(right["versions"])}


def damage(evaluator: ErrorDrawdownEvaluator, predictions: Tensor) -> dict[str, Any]:
    signed = evaluator.error_rate_of(predictions) - evaluator.error_rate
    changed = share(predictions != evaluator.before)
    return {"drawdown": abs(signed), "drawdown_signed": signed, "outputs_changed": changed}


def share(flags: Tensor) -> float:
    return flags.double().mean().item()


def summarize(name: str, records: Sequence[EditRecord]) -> dict[str, Any]:
    """Means over the corrections, with 95% bootstrap intervals."""
    keys = [key for key in records[0] if key not in ("image_index", "target")]
    return mean_row(name, {key: [record[key] for record in records] for key in keys})


def load_network(path: str) -> PreTrainedModel:
    if path.endswith(".th"):
        return load_published_cifar_resnet(path)
    if not Path(path).is_dir():
        raise FileNotFoundError(
            f"There is no checkpoint folder {path}: give one, or a published `.th` file to --plain."
        )
    return AutoModelForImageClassification.from_pretrained(path).eval()


def methods_of(
    args: argparse.Namespace, plain: PreTrainedModel, editable: PreTrainedModel, config: EditorConfig, train: Dataset
) -> list[tuple[Method, list[str]]]:
    """The methods, each with the layers that it moves."""
    methods, edited_layers, count = [], ",".join(config.layers), args.num_fixes
    for name, model in (("editable", editable), ("plain", plain)):
        fix = partial(by_editing, model, config, args.max_steps)
        methods.append((Method(f"edit, {name}", model, fix, EDIT_RATES, count), config.layers))
    for name, layers in (("all", ["*"]), (edited_layers, config.layers)):
        fix = partial(by_fine_tuning, plain, layers, args.max_steps)
        methods.append((Method(f"fine-tune, {name}", plain, fix, TUNE_RATES, count), layers))
    methods.append((Method("lookup table", plain, lambda request, rate: {}, (0.0,), count), ["*"]))
    fix, name = partial(by_retraining, plain, train, args), f"train on, {args.num_updates} updates"
    return [*methods, (Method(name, plain, fix, RETRAIN_RATES, args.num_retrained), ["*"])]


def main(args: argparse.Namespace) -> None:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        plain, editable = (load_network(path).to(device) for path in (args.plain, args.editable))
        config = EditorConfig.find(args.editable) if Path(args.editable).is_dir() else None
        data = load_image_data(args.data, seed=args.seed)
    except (OSError, ValueError) as error:
        raise SystemExit(str(error)) from error
    if config is None:
        raise SystemExit(f"{args.editable} has no editor_config.json: give a network that was trained to be edited.")
    comparison = Comparison(args, data, plain)
    settings = {key: value for key, value in vars(args).items() if key != "output_dir"}
    found = methods_of(args, plain, editable, config, comparison.train)
    methods = [(method, partial(comparison.fill, method, layers)) for method, layers in found]
    compare(args.output_dir, methods, settings, IMAGE_COLUMNS, test_name=data.test_name)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--plain", required=True, help="checkpoint folder, or a published CIFAR ResNet's `.th` file")
    add("--editable", required=True, help="folder of a network that was trained to be edited")
    add("--data", default="embedded", help="'embedded' (digits), a folder with CIFAR-10, or a hub id")
    add("--normalization", choices=("own", "imagenet"), help="of pixels; default: imagenet for a `.th` file, else own")
    add("--num_fixes", type=int, default=100, help="corrections for each row of the table")
    add("--num_retrained", type=int, default=20, help="the same where the network is trained on")
    add("--num_validation", type=int, default=20, help="corrections that learning rates are chosen on")
    add("--num_images", type=int, default=2_000, help="test images that drawdown is measured on")
    add("--num_validation_images", type=int, default=500, help="the same to choose learning rates")
    add("--num_versions", type=int, default=8, help="augmented versions of a corrected image")
    add("--max_steps", type=int, default=100, help="steps at most of an edit and of fine-tuning")
    add("--num_updates", type=int, default=100, help="updates of a network that is trained on")
    add("--batch_size", type=int, default=64, help="images in such an update, the corrected one included")
    add("--seed", type=int, default=0, help="of the corrections, the images and the augmentation")
    add("--output_dir", default="runs/compare_image_fixes", help="folder for the results")
    args = parser.parse_args()
    none = [f"--{name}" for name, value in vars(args).items() if name.startswith("num_") and value < 1]
    if none:
        parser.error(f"{', '.join(none)}: must be 1 or more")
    args.normalization = args.normalization or ("imagenet" if args.plain.endswith(".th") else "own")
    return args


if __name__ == "__main__":
    main(parse_args())
