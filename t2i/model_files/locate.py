"""From a model's name to its files on this machine, verified and ready to load."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, replace
from pathlib import Path

from t2i.errors import ModelError, UsageError
from t2i.model_files import hub, single_file
from t2i.model_files.library_logging import prepare_libraries
from t2i.model_files.registry import Defaults, ResolvedModel, model_defaults, resolve
from t2i.model_files.weight_files import check_pipeline_folder, safety_state, weights_hash


@dataclass(frozen=True)
class ModelFiles:
    """A model on this machine, its files checked and nothing loaded yet.

    path: the pipeline's folder, or the one file.  kind: the pipeline class by name.  revision: the Hub's commit.
    config: of one file, the folder of its configs, where that is known.
    safety: whether the model's safety checker is "there", "missing" though the model names one, or there is "none".
    """

    model: ResolvedModel
    path: Path
    kind: str
    weights: tuple[Path, ...]
    revision: str | None = None
    offline: bool = False
    config: Path | None = None
    safety: str = "none"

    @property
    def defaults(self) -> Defaults:
        """Return the settings that the model draws best with, as far as they are known."""
        return self.model.defaults

    @property
    def bytes(self) -> int:
        """Return the size of the weights on disk."""
        return sum(file.stat().st_size for file in self.weights)

    def hash(self) -> str | None:
        """Return the sha256 of the weights, or None where they are too large to hash (see `weights_hash`)."""
        return weights_hash(self.weights, self.path if self.path.is_dir() else self.path.parent)


def locate(model: str, *, revision: str | None = None, offline: bool = False, config: str | None = None) -> ModelFiles:
    """Find a model's files, downloading them where needed and allowed, and verify them.  Loads nothing.

    config: a folder with the configs of a single file.
    Raises UsageError (a revision of something local, configs of a folder), ModelUnavailable and ModelError.
    """
    prepare_libraries()  # every model is located before it is loaded, so this comes before diffusers is imported
    resolved = resolve(model)
    if revision is not None and resolved.kind != "hub":
        raise UsageError(f"revision {revision!r}: {resolved.name!r} is on this machine and has no revisions")
    if config is not None and resolved.kind != "file":
        raise UsageError(f"`config={config}`: {resolved.name!r} has its own; only a single file needs them")
    if resolved.kind == "file":
        path = Path(resolved.location)
        kind, configs = single_file.identify(path, Path(os.path.abspath(config)) if config is not None else None)
        return ModelFiles(resolved, path, kind, (path,), None, offline, configs)
    folder = Path(resolved.location)
    commit = None
    if resolved.kind == "hub":
        revision = revision or resolved.revision
        folder = hub.fetch(resolved, revision, offline)
        commit = folder.name if re.fullmatch(r"[0-9a-f]{40}", folder.name) else revision
        resolved = replace(resolved, defaults=model_defaults(folder, resolved.defaults))
    try:
        kind, weights = check_pipeline_folder(folder)
    except ModelError as e:
        name = resolved.location if resolved.kind == "hub" else folder.name
        raise ModelError(e.message.replace(f"{folder.name}", name, 1), e.hint) from None
    return ModelFiles(resolved, folder, kind, weights, commit, offline, safety=safety_state(folder))
