"""Perplexity, multiple choice and lm-eval."""
