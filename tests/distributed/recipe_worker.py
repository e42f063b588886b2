"""The translation recipe in miniature, its requests in chunks of three sources.

PYTHONPATH=tests:recipes torchrun --nproc_per_node 2 tests/distributed/recipe_worker.py FOLDER
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import iwslt_de_en

from editable_hf.experiments import translation_stages
from editable_hf.experiments.translation_recipe import load_config

translation_stages._CHUNK = 3
os.cpu_count = lambda: 1  # one thread a process, however many there are: another number rounds sums otherwise
demo = Path(iwslt_de_en.__file__).parent / "configs/iwslt_de_en/demo.yaml"
iwslt_de_en.main(load_config(config=str(demo), output_dir=sys.argv[1], data=None, seed=None, smoke=True))
