"""Downloads from the Hugging Face Hub: a model's files in the local cache, fetched where needed and allowed."""

from __future__ import annotations

import errno
from pathlib import Path

from t2i.errors import ModelError, ModelUnavailable, one_line
from t2i.model_files.hub_api import OFFLINE, TIMEOUT, check_listing, explain, is_reachable, not_cached
from t2i.model_files.library_logging import silence_libraries
from t2i.model_files.registry import Defaults, ResolvedModel

CONFIG_FILES = ["*.json", "*.txt", "*.model"]  # in every folder; those that diffusers would ask for
NETWORK_FILES = ["config.json", "diffusion_pytorch_model.safetensors", "diffusion_pytorch_model-*.safetensors"]
NETWORK_FILES += ["diffusion_pytorch_model.safetensors.index.json"]  # no copies in half precision


def fetch(model: ResolvedModel, revision: str | None = None, offline: bool = False) -> Path:
    """Return the snapshot folder of a Hub model in the cache, with its safetensors weights.

    offline: do not use the network; neither where HF_HUB_OFFLINE is set. When the Hub cannot be reached, a cached model
    still loads. Only JSON files are opened.
    Raises ModelUnavailable (no such id, gated, not cached and no network) and ModelError (no pipeline, or own code).
    """
    from huggingface_hub.constants import is_offline_mode

    if offline or is_offline_mode():
        return _from_cache(model, revision, OFFLINE)
    from huggingface_hub import model_info
    from huggingface_hub.errors import HfHubHTTPError

    try:
        info = model_info(model.location, revision=revision, timeout=TIMEOUT)
    except HfHubHTTPError as e:
        explain(e, model, revision)
    except Exception as e:  # the HTTP library's own errors, whichever library that is
        return _from_cache(model, revision, f"the Hub cannot be reached ({type(e).__name__})")
    check_listing({sibling.rfilename for sibling in info.siblings or ()}, model)
    return _download(model, revision)  # not by the commit: the cache would not know what `main` was, once offline


def fetch_network(id: str, offline: bool = False) -> Path:
    """Return the snapshot folder of one network on the Hub, such as a ControlNet, with its safetensors weights.

    Raises ModelUnavailable: no such id, gated, not cached and no network.
    """
    from huggingface_hub import model_info, snapshot_download
    from huggingface_hub.constants import is_offline_mode
    from huggingface_hub.errors import HfHubHTTPError

    if not (offline or is_offline_mode()):
        try:
            model_info(id, timeout=TIMEOUT)
            return Path(snapshot_download(id, allow_patterns=NETWORK_FILES))
        except HfHubHTTPError as e:
            explain(e, ResolvedModel("hub", id, id, Defaults()), None)
        except Exception:  # the HTTP library's own errors: a cached copy is as good
            pass
    folder = _cached(id, NETWORK_FILES, "config.json")
    if folder is None:
        raise ModelUnavailable(
            f"{id!r} is not in the cache, and the network is off or does not reach the Hub",
            f"with a network, `hf download {id} {' '.join(NETWORK_FILES[:2])}` gets it; or give a folder that holds it",
        )
    return folder


def fetch_configs(id: str, file: str, offline: bool) -> Path:
    """Return a folder with the configs and tokenizers of a Hub model, for the single file of weights called `file`.

    Raises ModelUnavailable where they are not cached and cannot be fetched.
    """
    folder = _cached(id, CONFIG_FILES, "model_index.json")
    if folder is not None:
        return folder
    if not offline and is_reachable(id):
        from huggingface_hub import snapshot_download

        try:
            return Path(snapshot_download(id, allow_patterns=CONFIG_FILES))
        except Exception as e:  # the Hub's answers and the HTTP library's own errors
            raise _no_configs(id, file) from e
    raise _no_configs(id, file)


def _no_configs(id: str, file: str) -> ModelUnavailable:
    return ModelUnavailable(
        f"{file} holds weights only; the configs and tokenizer of {id} belong to it and are not in the cache",
        f"with a network, `hf download {id} --include '*.json' --include '*.txt'` gets them (small files);"
        " or give a folder that has them: `config=FOLDER`",
    )


def _from_cache(model: ResolvedModel, revision: str | None, why: str) -> Path:
    """Return the snapshot folder in the cache.  Raises ModelUnavailable, saying why it was not downloaded."""
    # The folder as it is: `check_pipeline_folder` says later which of its files are missing.
    folder = _cached(model.location, ["model_index.json"], "model_index.json", revision)
    if folder is None:
        raise not_cached(model, revision, why)
    return folder


def _cached(id: str, patterns: list[str], needed: str, revision: str | None = None) -> Path | None:
    """Return the snapshot folder of a repository in the cache; None where it, or the needed file in it, is missing."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        folder = Path(snapshot_download(id, revision=revision, local_files_only=True, allow_patterns=patterns))
    except (LocalEntryNotFoundError, ValueError, OSError):
        return None
    return folder if (folder / needed).is_file() else None


def _download(model: ResolvedModel, revision: str | None) -> Path:
    from diffusers import DiffusionPipeline
    from huggingface_hub.errors import HfHubHTTPError

    try:
        with silence_libraries():
            return Path(DiffusionPipeline.download(model.location, revision=revision, use_safetensors=True))
    except HfHubHTTPError as e:
        explain(e, model, revision)
    except ValueError as e:
        reason = one_line(e)
        raise ModelError(f"cannot download {model.name!r}: {reason}", "`debug` shows where") from e
    except Exception as e:  # the HTTP library's own errors, the disk's
        if isinstance(e, OSError) and e.errno in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS):
            raise ModelError(f"cannot download {model.name!r}: {e.strerror}", "HF_HOME sets the folder") from e
        why = f"the download was interrupted ({type(e).__name__}); complete files are kept"
        raise not_cached(model, revision, why) from e
