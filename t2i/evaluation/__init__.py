"""Evaluation of generated images: extractors, metrics, references and scores, the same for every family."""
