"""`<lora:name:0.8>` in a prompt, A1111's syntax: removed from the text, and loaded as the option `lora` would.

NAME.safetensors is searched for in `lora_folder`, then in the working folder. With `raw`, prompts stay as they are.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from t2i.errors import UsageError
from t2i.jobs.spec.tasks import Prompt
from t2i.pipelines.adapters.specs import Adapters

NETWORK = re.compile(r"<lora:([^<>:]+)(?::([^<>:]*))?(?::([^<>]*))?>")
CHOICE = re.compile(r"\{[^{}]*<lora:")


def extract_lora_tags(prompt: Prompt, folder: Path | None, loras: Sequence[str]) -> Prompt:
    """Return the prompt without its `<lora:...>` tags, with their files added to its LoRAs.

    folder: of LoRAs.  loras: those of the whole run.
    Raises UsageError: no such file, no number, a tag inside {a|b}, which would need another model for each seed.
    """
    if prompt.literal or "<lora:" not in prompt.text:
        return prompt
    where = f"{prompt.where}: " if prompt.where else ""
    if CHOICE.search(prompt.text):
        raise UsageError(f"{where}<lora:...> inside {{ }} in a prompt", "write it outside, or write a prompt for each")
    found = list(_specs(prompt.text, folder, where))
    overrides = prompt.overrides.with_(lora=(*prompt.overrides.get("lora", loras), *found))
    Adapters.read(overrides["lora"])
    text = re.sub(r"[ \t]{2,}", " ", NETWORK.sub("", prompt.text)).strip()
    return replace(prompt, text=text, overrides=overrides, template=prompt.template or prompt.text)


def _specs(text: str, folder: Path | None, where: str) -> Iterator[str]:
    for match in NETWORK.finditer(text):
        name, scale, second = match[1].strip(), match[2] or "1", match[3]
        if second is not None:
            raise UsageError(
                f"{where}{match[0][:80]}: one strength is for the whole model here", "leave the second out"
            )
        if Path(name).name != name or "\\" in name:  # prompts may come from someone else
            raise UsageError(
                f"{where}{match[0][:80]}: a name without folders is expected", "`lora=PATH` takes any path"
            )
        places = [place / f"{name}.safetensors" for place in (folder, Path()) if place is not None]
        path = next((place for place in places if place.is_file()), None)
        if path is None:
            searched = " or ".join(str(place) for place in places)
            hint = "`lora_folder=FOLDER` sets their folder; `raw` takes prompts literally"
            raise UsageError(f"{where}{match[0][:80]} in a prompt: there is no {searched}", hint)
        yield f"{path}:{scale}"
