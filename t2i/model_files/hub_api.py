"""Requests to the Hub before a download: listings, licences, sizes; and its refusals as error messages."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from t2i.errors import ModelError, ModelUnavailable
from t2i.model_files.registry import NAMES, ResolvedModel, near
from t2i.model_files.weight_files import LOADED

TIMEOUT = 10  # seconds for the first answer; downloads have the Hub library's own patience
OFFLINE = "the network is off (`offline` or HF_HUB_OFFLINE)"


def is_reachable(id: str) -> bool:
    """Return whether the Hub answers for this model, in one request: its own library retries for half a minute."""
    from huggingface_hub import model_info

    try:
        model_info(id, timeout=TIMEOUT)
    except Exception:  # offline by setting, no network, no such model: all the same here
        return False
    return True


def describe(model: ResolvedModel) -> dict[str, Any]:
    """Return a model's licence, whether it is gated, and its newest commit, as the Hub has them.

    Raises ModelUnavailable: no network, or no such model.
    """
    from huggingface_hub import model_info
    from huggingface_hub.errors import HfHubHTTPError

    try:
        info = model_info(model.location, timeout=TIMEOUT)
    except HfHubHTTPError as e:
        explain(e, model, None)
    except Exception as e:  # offline by setting, or the HTTP library's own errors
        message = f"the Hub cannot be asked about {model.name!r} ({type(e).__name__})"
        raise ModelUnavailable(message, "leave `online` out") from None
    license = getattr(info.card_data, "license", None) or model.defaults.license
    return {"license": license, "gated": bool(info.gated), "newest": info.sha}


@dataclass(frozen=True)
class Remote:
    """A download that the Hub would send: {file: bytes}, and facts about the model.  kind: the pipeline class."""

    files: dict[str, int]
    kind: str | None
    license: str | None
    gated: bool
    commit: str | None

    @property
    def bytes(self) -> int:
        """Return the size of the whole download."""
        return sum(self.files.values())


def ask(model: ResolvedModel, revision: str | None = None, offline: bool = False) -> Remote:
    """Ask the Hub what `hub.fetch` would download of a model that is not in the cache; download nothing.

    Raises ModelUnavailable (no network, no such id, gated and not accepted) and ModelError, as `hub.fetch` does.
    """
    from huggingface_hub import auth_check, model_info
    from huggingface_hub.constants import is_offline_mode
    from huggingface_hub.errors import HfHubHTTPError

    if offline or is_offline_mode():
        raise not_cached(model, revision, OFFLINE)
    try:
        info = model_info(model.location, revision=revision, timeout=TIMEOUT, files_metadata=True)
        if info.gated:
            auth_check(model.location)
    except HfHubHTTPError as e:
        explain(e, model, revision)
    except Exception as e:  # the HTTP library's own errors, whichever library that is
        raise not_cached(model, revision, f"the Hub cannot be reached ({type(e).__name__})") from None
    sizes = {sibling.rfilename: sibling.size or 0 for sibling in info.siblings or ()}
    check_listing(set(sizes), model)
    kind = ((info.config or {}).get("diffusers") or {}).get("_class_name")
    license = getattr(info.card_data, "license", None) or model.defaults.license
    return Remote(_wanted(sizes), kind, license, bool(info.gated), info.sha)


def _wanted(sizes: dict[str, int]) -> dict[str, int]:
    """Select the files of a listing that are downloaded: configs, tokenizers, and weights that are no variant."""
    plain = {name.rpartition("/")[0] for name in sizes if LOADED.fullmatch(name.rpartition("/")[2])}

    def is_wanted(name: str) -> bool:
        folder, _, file = name.rpartition("/")
        if file.endswith(".safetensors"):
            return bool(folder) and (LOADED.fullmatch(file) is not None or folder not in plain)
        return Path(file).suffix in (".json", ".txt", ".model")

    return {name: size for name, size in sizes.items() if is_wanted(name)}


def not_cached(model: ResolvedModel, revision: str | None, why: str) -> ModelUnavailable:
    """Return the error for a model that would have to be downloaded and cannot be; it names the command to get it."""
    at = f" at revision {revision}" if revision else ""
    command = f"t2i models pull {model.name}{f' --revision {revision}' if revision else ''}"
    return ModelUnavailable(
        f"model {model.name!r}{at} is not in the cache, and {why}",
        f"with a network, `{command}` gets it; the embedded model needs none: `model=mini`",
    )


def check_listing(files: set[str], model: ResolvedModel) -> None:
    """Raise ModelError before a download that would be refused after it."""
    if "model_index.json" not in files:
        single = sorted(name for name in files if name.endswith(".safetensors"))
        hint = f"download {single[0]!r} and give its path" if single else "give the id of a text-to-image pipeline"
        raise ModelError(f"{model.location} is not a diffusers pipeline: it has no model_index.json", hint)
    if "pipeline.py" in files:
        raise ModelError(
            f"{model.location} carries its own code (pipeline.py); t2i never runs code that comes with a model",
            "use a model that needs none",
        )


def explain(e: Exception, model: ResolvedModel, revision: str | None) -> NoReturn:
    """Raise ModelUnavailable with the meaning of an error answer of the Hub."""
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    status: Any = getattr(getattr(e, "response", None), "status_code", None)
    if isinstance(e, GatedRepoError):
        hint = f"accept its licence on the Hub's page of {model.location}, then `hf auth login` (or set HF_TOKEN)"
        raise ModelUnavailable(f"model {model.name!r} is gated", hint) from None
    if isinstance(e, RevisionNotFoundError):
        raise ModelUnavailable(f"model {model.name!r} has no revision {revision!r}", "leave `revision` out") from None
    if isinstance(e, RepositoryNotFoundError) or status in (401, 403):
        guesses = near(model.location)
        hint = f"did you mean {' or '.join(guesses)}?" if guesses else f"names: {', '.join(NAMES)}"
        private = "" if os.environ.get("HF_TOKEN") else "; a private one needs `hf auth login`"
        raise ModelUnavailable(f"no model {model.location!r} on the Hub{private}", hint) from None
    raise not_cached(model, revision, f"the Hub answered {status or type(e).__name__}") from e
