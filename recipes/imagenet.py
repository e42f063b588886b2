"""Section 4.3: editable fine-tuning of a pre-trained classifier, of its third chain or of an extra layer. Table 4.

    python recipes/imagenet.py --config recipes/configs/imagenet/demo.yaml
    python recipes/imagenet.py --config recipes/configs/imagenet/small.yaml --data path/to/images
    accelerate launch recipes/imagenet.py --config recipes/configs/imagenet/paper.yaml --data path/to/imagenet

Images are in `train/CLASS/*.JPEG` and `val/CLASS/*.JPEG`. Stages as in cifar10.py. The extra block starts at zero
output: "pretrained, extra" has the starting network's predictions exactly, and only its edits show the new block.
"""

from __future__ import annotations

from editable_hf.experiments.image_parts import load_images
from editable_hf.experiments.image_recipe import ImageRecipeConfig, parse_args
from editable_hf.experiments.image_stages import (
    Rows,
    print_table,
    random_edits,
    random_training_requests,
    starting_network,
)
from editable_hf.experiments.paper_tables import TABLE_4
from editable_hf.experiments.stages import Stages


def main(config: ImageRecipeConfig) -> None:
    stages, images = Stages(config.output_dir), load_images(config.data, config.seed)
    start = starting_network(config, stages, images)
    edits = random_edits(config, stages, images)  # "N=1000 edits with random target class", section 4.3
    requests = random_training_requests(config, images)
    rows = Rows(config, stages, images, start, edits, requests).run()
    if stages.state.is_main_process:
        # The networks without a row in the paper are small ones, whose neighbor there is ResNet-18.
        paper = "densenet169" if config.model.architecture == "densenet169" else "resnet18"
        title = f"Table 4. Ours: {images.test_name}. Paper: ImageNet, {paper}, validation images."
        print_table(title, TABLE_4[paper], rows, stages.output_dir, config.evaluation.min_success_rate)


if __name__ == "__main__":
    main(parse_args(__doc__))
