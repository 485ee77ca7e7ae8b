"""How good a model is, and how fast.

`scoring` computes log-likelihoods, perplexity and multiple choice; `lm_eval_model` is the model for
lm-eval's tasks; `evaluate` is `llama eval`, which uses both. `speed` is `llama bench`, and
`random_checkpoint` makes the weights it runs of a shape that has none.
"""
