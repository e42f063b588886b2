"""Section 4.1: which editor, on which layers? Tables 1 and 2.

    python recipes/compare_editors.py --config recipes/configs/compare_editors/demo.yaml
    python recipes/compare_editors.py --config recipes/configs/compare_editors/small.yaml \
        --data path/to/cifar10 --weights resnet20-12fca82f.th

Stages and rows as in cifar10.py: one network, a row for every editor and every choice of layers. The hyperparameters
of each are tuned on held-out images for the smallest drawdown with at least 95% success; then edits of test images are
measured on the whole test set.
"""

from __future__ import annotations

from editable_hf.experiments.image_parts import load_images
from editable_hf.experiments.image_recipe import ImageRecipeConfig, parse_args
from editable_hf.experiments.image_stages import Rows, print_table, random_edits, starting_network
from editable_hf.experiments.paper_tables import TABLE_1, TABLE_2
from editable_hf.experiments.report import ERROR_COLUMNS, format_table
from editable_hf.experiments.stages import Stages


def main(config: ImageRecipeConfig) -> None:
    stages, images = Stages(config.output_dir), load_images(config.data, config.seed)
    start = starting_network(config, stages, images)
    edits = random_edits(config, stages, images)
    rows = Rows(config, stages, images, start, edits, {}).run()
    if stages.state.is_main_process:
        print(f"\nTable 1. Ours: {images.test_name}. Paper: CIFAR-10, ResNet-18.")
        print(format_table([*TABLE_1, *best_layers(rows)], ERROR_COLUMNS))
        title = "Table 2: all layers. Paper: " + "; ".join(f"{name} {values}" for name, values in TABLE_2.items())
        print_table(title, [], rows, stages.output_dir, config.evaluation.min_success_rate)


def best_layers(rows: list[dict]) -> list[dict]:
    """Each editor with the layers that gave it the least drawdown in tuning."""
    tuned = [row for row in rows if "tuned" in row]
    editors = dict.fromkeys(row["editor"] for row in tuned)
    return [
        min((row for row in tuned if row["editor"] == name), key=lambda row: row["tuned"]["drawdown"])
        for name in editors
    ]


if __name__ == "__main__":
    main(parse_args(__doc__))
