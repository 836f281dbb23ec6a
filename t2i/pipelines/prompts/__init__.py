"""Prompts: choices, weights, tokens, embeddings."""
