"""How well pictures show what their prompts ask for: prompt accuracy by a judge's words, and CLIPScore."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from t2i.evaluation.extraction import Seen
from t2i.evaluation.features import Extractor
from t2i.evaluation.image_sets import ImageSet

ALL = "all of them"  # the row of prompts that name a class of every question, and pictures that show each


def prompt_accuracy(found: Seen, real: Seen) -> dict[str, dict[str, float | int | None]]:
    """{question: {`n`, `value`, `floor`}}, and of all questions together; empty where the judge has one question.

    value: the share of the n pictures whose prompt names one class of the question, that the judge takes for it.
    floor: the same of the real pictures whose class is known.
    """
    if found.logits is None or len(found.questions) < 2:
        return {}
    ours, theirs = _right(found), _right(real)
    return {
        name: {"n": len(ours[name]), "value": _mean(ours[name]), "floor": _mean(theirs[name])}
        for name in (*found.questions, ALL)
        if len(ours[name])
    }


def _right(seen: Seen) -> dict[str, Tensor]:
    """By question, which of the pictures that were asked it are right: (n,) bool."""
    assert seen.logits is not None
    parts = seen.logits.split([len(classes) for classes in seen.questions.values()], 1)
    right = torch.stack([part.argmax(1) for part in parts], 1) == seen.answers
    asked = seen.answers >= 0
    found = {name: right[asked[:, k], k] for k, name in enumerate(seen.questions)}
    return found | {ALL: right[asked.all(1)].all(1)}


def _mean(right: Tensor) -> float | None:
    return float(right.double().mean()) if len(right) else None


def clip_score(found: Seen, pictures: ImageSet, extractor: Extractor) -> dict[str, Any] | None:
    """CLIPScore (Hessel et al. 2021) in its usual scale: 100 x max(cos(picture, prompt), 0), its mean and deviation.

    Of the pictures whose features were kept; None without prompts, or where the extractor is no CLIP with a tokenizer.
    """
    if not pictures.prompted or extractor.text is None:
        return None
    prompts = pictures.labels(found.rows.tolist())
    known = {prompt: place for place, prompt in enumerate(dict.fromkeys(prompts))}
    texts = F.normalize(extractor.text(list(known)).double(), dim=1)
    seen = F.normalize(found.features.double(), dim=1)
    scores = 100 * (seen * texts[[known[prompt] for prompt in prompts]]).sum(1).clamp(min=0)
    return {"n": len(scores), "value": float(scores.mean()), "spread": float(scores.std())}
