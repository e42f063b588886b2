"""Section 4.3.1: edits that a user would make. Natural adversarial examples are given their true classes.

    python recipes/natural_adversarial.py --config recipes/configs/natural_adversarial/demo.yaml
    accelerate launch recipes/natural_adversarial.py --config recipes/configs/natural_adversarial/paper.yaml \
        --data path/to/imagenet --natural_adversarial path/to/imagenet-a

Table 5: drawdown of such edits, edits in a row, and whether an edit carries over to the most similar test image.
Stages as in cifar10.py, and: the examples with the ranks of their true classes under the starting network, sequences
of edits, neighbors, generalization. Without a folder of examples, the validation images that the starting network
gets wrong stand for them (`source: mistakes`).
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import torch

from editable_hf.experiments.adversarial_stages import (
    example_edits,
    example_training_requests,
    measure_generalization,
    measure_sequences,
    prepare_examples,
)
from editable_hf.experiments.image_parts import ImageSets, load_images
from editable_hf.experiments.image_recipe import ImageRecipeConfig, parse_args
from editable_hf.experiments.image_stages import Rows, print_table, random_training_requests, starting_network
from editable_hf.experiments.paper_tables import GENERALIZATION
from editable_hf.experiments.plots import plot_sequences, plots_available
from editable_hf.experiments.report import GENERALIZATION_COLUMNS, SEQUENCE_COLUMNS, format_table, write_results
from editable_hf.experiments.stages import Stages


def main(config: ImageRecipeConfig) -> None:
    stages, images = Stages(config.output_dir), load_images(config.data, config.seed)
    start = starting_network(config, stages, images)
    # "These NAEs do not overlap with 1.000 NAE examples used for evaluation": divided here, once for all rows.
    examples = prepare_examples(config, stages, images, start)
    edits = example_edits(config, examples)
    requests = {
        **random_training_requests(config, images),
        **example_training_requests(config, images, examples),
    }
    rows = Rows(config, stages, images, start, edits, requests)
    table = rows.run()
    sequences = measure_sequences(config, stages, images, edits, rows)
    generalization = measure_generalization(config, stages, images, examples, edits, rows)
    if stages.state.is_main_process:
        folder = stages.output_dir
        extra = {"test_name": images.test_name, "sequences": sequences, "generalization": generalization}
        write_results(folder / "results.json", table, asdict(config), config.seed, **extra)
        report(config, images, table, sequences, generalization, folder)


def report(
    config: ImageRecipeConfig, images: ImageSets, table: list, sequences: list, generalization: list, folder: Path
) -> None:
    title = f"Table 5. Ours: {images.test_name}, examples: {config.adversarial.source}. "
    print_table(
        f"{title}The paper shows its rows as a picture.", [], table, folder, config.evaluation.min_success_rate
    )
    if generalization:
        print("\nThe most similar test image after an edit. Paper: ImageNet, ResNet-18.")
        print(format_table([*GENERALIZATION, *generalization], GENERALIZATION_COLUMNS))
    if sequences:
        print("\nEdits in a row, each from the weights that the one before left.")
        print(format_table(sequences, SEQUENCE_COLUMNS))
    if sequences and plots_available():
        rates = {row["name"]: torch.tensor(row["error_rates"]) for row in sequences}
        plot_sequences(rates, folder / "sequences.png", images.test_name)
        print(f"\nRanks of the true classes: {folder / 'examples/ranks.png'}; sequences: {folder / 'sequences.png'}")


if __name__ == "__main__":
    main(parse_args(__doc__, own_section="adversarial"))
