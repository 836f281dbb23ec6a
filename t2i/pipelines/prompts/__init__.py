"""From the words of a prompt to embeddings."""
