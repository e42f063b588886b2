"""Trainers for Editable Training: `Seq2SeqTrainer` and `Trainer` with the two terms that Eq. 2 adds to the loss."""
