"""What happens inside a model: tokens, probabilities, choices.

`token_texts` shows tokens as text, `next_tokens` is `llama next`: what may come next, and what each
way of decoding makes of it.
"""
