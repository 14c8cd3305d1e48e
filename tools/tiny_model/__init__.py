"""How the built-in model is made from the conversations of `tiny_corpus`: tokenizer, training, examination, card."""
