"""Runs in a process of its own, with the hub's address in its environment: `trainer_client.py MODEL FOLDER`.

Trains the model a step further, on the pairs in the folder, and pushes it.
"""

from __future__ import annotations

import json
import sys

from datasets import Dataset
from transformers import AutoTokenizer, MarianMTModel

from editable_hf import EditableSeq2SeqTrainer, EditableSeq2SeqTrainingArguments

start, folder = sys.argv[1:]
model = MarianMTModel.from_pretrained(start, attn_implementation="eager")
tokenizer = AutoTokenizer.from_pretrained(start)
rows = Dataset.from_json(f"{folder}/pairs.jsonl")
train = rows.map(lambda row: tokenizer(row["source"], text_target=row["target"]), remove_columns=rows.column_names)
args = EditableSeq2SeqTrainingArguments(
    f"{folder}/translator",
    max_steps=1,
    edit_layers=["decoder.layers.1"],
    hub_model_id="me/translator",
    report_to="none",
    use_cpu=True,
    disable_tqdm=True,
)
trainer = EditableSeq2SeqTrainer(model, args, train_dataset=train, processing_class=tokenizer)
trainer.train()
trainer.push_to_hub()
print(json.dumps({"done": True}))
