"""A model on the Hugging Face Hub: its files in the local cache, downloaded first where that is needed and allowed."""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from t2i.errors import ModelError, ModelUnavailable
from t2i.pipelines.need import LOADED
from t2i.pipelines.quiet import prepare_libraries, quiet
from t2i.zoo import NAMES, Defaults, ResolvedModel, near

CONFIG_FILES = ["*.json", "*.txt", "*.model"]  # in every folder; what diffusers itself would ask for
NETWORK_FILES = ["config.json", "diffusion_pytorch_model.safetensors", "diffusion_pytorch_model-*.safetensors"]
NETWORK_FILES += ["diffusion_pytorch_model.safetensors.index.json"]  # not the same weights in half precision
TIMEOUT = 10  # seconds for the first answer; downloads have the Hub library's own patience


def fetch(model: ResolvedModel, revision: str | None = None, offline: bool = False) -> Path:
    """The snapshot folder of a Hub model in the cache, with its safetensors weights.

    Nothing is asked of the network when `offline`, or where HF_HUB_OFFLINE is set. When the Hub cannot be reached, a
    cached model still loads. No file is opened but JSON.
    Raises ModelUnavailable (no such id, gated, not cached and no network) and ModelError (no pipeline, or own code).
    """
    prepare_libraries()
    from huggingface_hub.constants import is_offline_mode

    if offline or is_offline_mode():
        return _from_cache(model, revision, "the network is off (--offline or HF_HUB_OFFLINE)")
    from huggingface_hub import model_info
    from huggingface_hub.errors import HfHubHTTPError

    try:
        info = model_info(model.location, revision=revision, timeout=TIMEOUT)
    except HfHubHTTPError as e:
        _explain(e, model, revision)
    except Exception as e:  # the HTTP library's own errors, whichever library that is
        return _from_cache(model, revision, f"the Hub cannot be reached ({type(e).__name__})")
    _check_listing({sibling.rfilename for sibling in info.siblings or ()}, model)
    return _download(model, revision)  # not by the commit: the cache would not know what `main` was, once offline


def fetch_network(id: str, offline: bool = False) -> Path:
    """The snapshot folder of one network on the Hub, such as a ControlNet, with its safetensors weights.

    Raises ModelUnavailable: no such id, gated, not cached and no network.
    """
    prepare_libraries()
    from huggingface_hub import model_info, snapshot_download
    from huggingface_hub.constants import is_offline_mode
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    if not (offline or is_offline_mode()):
        try:
            model_info(id, timeout=TIMEOUT)
            return Path(snapshot_download(id, allow_patterns=NETWORK_FILES))
        except HfHubHTTPError as e:
            _explain(e, ResolvedModel("hub", id, id, Defaults()), None)
        except Exception:  # the HTTP library's own errors: what is in the cache will do
            pass
    try:
        folder = Path(snapshot_download(id, local_files_only=True, allow_patterns=NETWORK_FILES))
    except (LocalEntryNotFoundError, ValueError, OSError):
        folder = Path()
    if not (folder / "config.json").is_file():
        raise ModelUnavailable(
            f"{id!r} is not in the cache, and the network is off or does not reach the Hub",
            f"with a network, `hf download {id} {' '.join(NETWORK_FILES[:2])}` gets it; or give a folder that holds it",
        )
    return folder


def is_reachable(id: str) -> bool:
    """Whether the Hub answers for this model, asked once; its library alone would try for half a minute."""
    from huggingface_hub import model_info

    try:
        model_info(id, timeout=TIMEOUT)
    except Exception:  # offline by setting, no network, no such model: all the same here
        return False
    return True


def describe(model: ResolvedModel) -> dict[str, Any]:
    """What the Hub itself says of a model: its licence, whether it is gated, its newest commit.

    Raises ModelUnavailable: no network, or no such model.
    """
    from huggingface_hub import model_info
    from huggingface_hub.errors import HfHubHTTPError

    try:
        info = model_info(model.location, timeout=TIMEOUT)
    except HfHubHTTPError as e:
        _explain(e, model, None)
    except Exception as e:  # offline by setting, or the HTTP library's own errors
        message = f"the Hub cannot be asked about {model.name!r} ({type(e).__name__})"
        raise ModelUnavailable(message, "leave --online out") from None
    license = getattr(info.card_data, "license", None) or model.defaults.license
    return {"license": license, "gated": bool(info.gated), "newest": info.sha}


@dataclass(frozen=True)
class Remote:
    """What the Hub would send of a model: {file: bytes}, and what it says of it.  kind: the pipeline class."""

    files: dict[str, int]
    kind: str | None
    license: str | None
    gated: bool
    commit: str | None

    @property
    def bytes(self) -> int:
        """Of the whole download."""
        return sum(self.files.values())


def ask(model: ResolvedModel, revision: str | None = None, offline: bool = False) -> Remote:
    """What `fetch` would download of a model that is not in the cache; asks the Hub and downloads nothing.

    Raises ModelUnavailable (no network, no such id, gated and not accepted) and ModelError, as `fetch` does.
    """
    prepare_libraries()
    from huggingface_hub import auth_check, model_info
    from huggingface_hub.constants import is_offline_mode
    from huggingface_hub.errors import HfHubHTTPError

    if offline or is_offline_mode():
        raise not_cached(model, revision, "the network is off (--offline or HF_HUB_OFFLINE)")
    try:
        info = model_info(model.location, revision=revision, timeout=TIMEOUT, files_metadata=True)
        if info.gated:
            auth_check(model.location)
    except HfHubHTTPError as e:
        _explain(e, model, revision)
    except Exception as e:  # the HTTP library's own errors, whichever library that is
        raise not_cached(model, revision, f"the Hub cannot be reached ({type(e).__name__})") from None
    sizes = {sibling.rfilename: sibling.size or 0 for sibling in info.siblings or ()}
    _check_listing(set(sizes), model)
    kind = ((info.config or {}).get("diffusers") or {}).get("_class_name")
    license = getattr(info.card_data, "license", None) or model.defaults.license
    return Remote(_wanted(sizes), kind, license, bool(info.gated), info.sha)


def _wanted(sizes: dict[str, int]) -> dict[str, int]:
    """Those files of a model's listing that are downloaded: configs, tokenizers, and weights that are no variant."""
    plain = {name.rpartition("/")[0] for name in sizes if LOADED.fullmatch(name.rpartition("/")[2])}

    def is_wanted(name: str) -> bool:
        folder, _, file = name.rpartition("/")
        if file.endswith(".safetensors"):
            return bool(folder) and (LOADED.fullmatch(file) is not None or folder not in plain)
        return Path(file).suffix in (".json", ".txt", ".model")

    return {name: size for name, size in sizes.items() if is_wanted(name)}


def fetch_configs(id: str, file: str, offline: bool) -> Path:
    """The configs and tokenizers of a Hub model, without its weights, for the single file of weights called `file`.

    Raises ModelUnavailable where they are not cached and cannot be fetched.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        folder = Path(snapshot_download(id, local_files_only=True, allow_patterns=CONFIG_FILES))
        if (folder / "model_index.json").is_file():
            return folder
    except (LocalEntryNotFoundError, ValueError, OSError):
        pass
    if not offline and is_reachable(id):
        try:
            return Path(snapshot_download(id, allow_patterns=CONFIG_FILES))
        except Exception as e:  # the Hub's answers and the HTTP library's own errors
            raise _no_configs(id, file) from e
    raise _no_configs(id, file)


def _no_configs(id: str, file: str) -> ModelUnavailable:
    return ModelUnavailable(
        f"{file} holds weights only; the configs and tokenizer of {id} belong to it and are not in the cache",
        f"with a network, `hf download {id} --include '*.json' --include '*.txt'` gets them (small files);"
        " or give a folder that has them: --config FOLDER",
    )


def _from_cache(model: ResolvedModel, revision: str | None, why: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        # The folder as it is: which of its files are needed, and whether they are there, is checked afterwards.
        patterns = ["model_index.json"]
        folder = snapshot_download(model.location, revision=revision, local_files_only=True, allow_patterns=patterns)
    except (LocalEntryNotFoundError, ValueError, OSError):
        raise not_cached(model, revision, why) from None
    if not (Path(folder) / "model_index.json").is_file():
        raise not_cached(model, revision, why)
    return Path(folder)


def not_cached(model: ResolvedModel, revision: str | None, why: str) -> ModelUnavailable:
    """What is said where a model would have to be downloaded and cannot be; names the command that gets it."""
    at = f" at revision {revision}" if revision else ""
    command = f"t2i models pull {model.name}{f' --revision {revision}' if revision else ''}"
    return ModelUnavailable(
        f"model {model.name!r}{at} is not in the cache, and {why}",
        f"with a network, `{command}` gets it; the embedded model needs none: --model mini",
    )


def _download(model: ResolvedModel, revision: str | None) -> Path:
    from diffusers import DiffusionPipeline
    from huggingface_hub.errors import HfHubHTTPError

    try:
        with quiet():
            return Path(DiffusionPipeline.download(model.location, revision=revision, use_safetensors=True))
    except HfHubHTTPError as e:
        _explain(e, model, revision)
    except ValueError as e:
        reason = " ".join(str(e).split())[:200]
        raise ModelError(f"cannot download {model.name!r}: {reason}", "--debug shows where") from e
    except Exception as e:  # the HTTP library's own errors, the disk's
        if isinstance(e, OSError) and e.errno in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS):
            raise ModelError(f"cannot download {model.name!r}: {e.strerror}", "HF_HOME says where it goes") from e
        why = f"the download broke off ({type(e).__name__}); files that arrived whole are kept"
        raise not_cached(model, revision, why) from e


def _check_listing(files: set[str], model: ResolvedModel) -> None:
    """Refuse before anything is downloaded what would be refused afterwards."""
    if "model_index.json" not in files:
        single = sorted(name for name in files if name.endswith(".safetensors"))
        hint = f"download {single[0]!r} and give its path" if single else "give the id of a text-to-image pipeline"
        raise ModelError(f"{model.location} is not a diffusers pipeline: it has no model_index.json", hint)
    if "pipeline.py" in files:
        raise ModelError(
            f"{model.location} carries its own code (pipeline.py); t2i never runs code that comes with a model",
            "use a model that needs none",
        )


def _explain(e: Exception, model: ResolvedModel, revision: str | None) -> NoReturn:
    """Turn an answer of the Hub into what it means to the user."""
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    status: Any = getattr(getattr(e, "response", None), "status_code", None)
    if isinstance(e, GatedRepoError):
        hint = f"accept its licence on the Hub's page of {model.location}, then `hf auth login` (or set HF_TOKEN)"
        raise ModelUnavailable(f"model {model.name!r} is gated", hint) from None
    if isinstance(e, RevisionNotFoundError):
        raise ModelUnavailable(f"model {model.name!r} has no revision {revision!r}", "leave --revision out") from None
    if isinstance(e, RepositoryNotFoundError) or status in (401, 403):
        guesses = near(model.location)
        hint = f"did you mean {' or '.join(guesses)}?" if guesses else f"names: {', '.join(NAMES)}"
        private = "" if os.environ.get("HF_TOKEN") else "; a private one needs `hf auth login`"
        raise ModelUnavailable(f"no model {model.location!r} on the Hub{private}", hint) from None
    raise not_cached(model, revision, f"the Hub answered {status or type(e).__name__}") from e
