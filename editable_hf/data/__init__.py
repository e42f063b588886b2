"""Translation corpora in one form, their tokenizer, and the edit requests made from them."""
