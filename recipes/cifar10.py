"""Section 4.1: Editable Training of an image classifier, and what it is compared with. Table 3 and Figure 2.

    python recipes/cifar10.py --config recipes/configs/cifar10/demo.yaml
    python recipes/cifar10.py --config recipes/configs/cifar10/small.yaml \
        --data path/to/cifar10 --weights resnet20-12fca82f.th --rows "DkNN k=10"
    accelerate launch recipes/cifar10.py --config recipes/configs/cifar10/paper.yaml --data path/to/cifar10

Stages: the starting network, edit requests, then for each row of the table its network and its edits. Each leaves a
folder in the output folder and is skipped when it is there and its inputs are unchanged; a killed run continues where
it was. All networks are trained for equally many updates, and all rows are measured with the same edits. With `--rows`
only those rows are made, and the table shows them beside the rows that are there already.
"""

from __future__ import annotations

from editable_hf.experiments.figure_2 import make_figure_2
from editable_hf.experiments.image_parts import load_images
from editable_hf.experiments.image_recipe import ImageRecipeConfig, parse_args
from editable_hf.experiments.image_stages import (
    Rows,
    print_table,
    random_edits,
    random_training_requests,
    starting_network,
)
from editable_hf.experiments.paper_tables import TABLE_3
from editable_hf.experiments.stages import Stages


def main(config: ImageRecipeConfig) -> None:
    stages, images = Stages(config.output_dir), load_images(config.data, config.seed)
    start = starting_network(config, stages, images)
    # N edits, "each an image from the test set assigned with a random (likely incorrect) label", section 4.1
    edits = random_edits(config, stages, images)
    requests = random_training_requests(config, images)
    rows = Rows(config, stages, images, start, edits, requests)
    table = rows.run()
    if stages.state.is_main_process:
        title = f"Table 3. Ours: {images.test_name}. Paper: CIFAR-10, ResNet-18."
        print_table(title, TABLE_3, table, stages.output_dir, config.evaluation.min_success_rate)
    make_figure_2(config, stages, images, rows)


if __name__ == "__main__":
    main(parse_args(__doc__, own_section="figure_2"))
