"""Fidelity of images to their prompts: prompt accuracy by the judge's classes, and CLIPScore."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from t2i.evaluation.extraction import ExtractedFeatures
from t2i.evaluation.features import Extractor
from t2i.evaluation.image_sets import ImageSet

ALL = "all of them"  # the entry for prompts that name a class of every question, and images that show all of them


def prompt_accuracy(found: ExtractedFeatures, real: ExtractedFeatures) -> dict[str, dict[str, float | int | None]]:
    """Return {question: {`n`, `value`, `floor`}}, and of all together; empty where the judge has one question.

    value: of the n images whose prompt names one class of the question, the share that the judge assigns to it.
    floor: the same of the real images whose class is known.
    """
    if found.logits is None or len(found.questions) < 2:
        return {}
    ours, theirs = _correct_by_question(found), _correct_by_question(real)
    return {
        name: {"n": len(ours[name]), "value": _mean(ours[name]), "floor": _mean(theirs[name])}
        for name in (*found.questions, ALL)
        if len(ours[name])
    }


def _correct_by_question(extracted: ExtractedFeatures) -> dict[str, Tensor]:
    """Return, by question, which of the images with a known answer are classified correctly: (n,) bool."""
    assert extracted.logits is not None
    parts = extracted.logits.split([len(classes) for classes in extracted.questions.values()], 1)
    correct = torch.stack([part.argmax(1) for part in parts], 1) == extracted.answers
    known = extracted.answers >= 0
    found = {name: correct[known[:, k], k] for k, name in enumerate(extracted.questions)}
    return found | {ALL: correct[known.all(1)].all(1)}


def _mean(correct: Tensor) -> float | None:
    return float(correct.double().mean()) if len(correct) else None


def clip_score(found: ExtractedFeatures, pictures: ImageSet, extractor: Extractor) -> dict[str, Any] | None:
    """Return CLIPScore (Hessel et al.

    2021) in its usual scale, 100 x max(cos(image, prompt), 0): mean and standard deviation.
    Over the images whose features were kept; None without prompts, or where the extractor is no CLIP with a tokenizer.
    """
    if not pictures.prompted or extractor.text is None:
        return None
    prompts = pictures.labels(found.rows.tolist())
    places = {prompt: place for place, prompt in enumerate(dict.fromkeys(prompts))}  # each prompt is encoded once
    texts = F.normalize(extractor.text(list(places)).double(), dim=1)
    pictured = F.normalize(found.features.double(), dim=1)
    scores = 100 * (pictured * texts[[places[prompt] for prompt in prompts]]).sum(1).clamp(min=0)
    return {"n": len(scores), "value": float(scores.mean()), "spread": float(scores.std())}
