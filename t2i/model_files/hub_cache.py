"""The Hub's cache on this machine: list the models in it with their sizes, and delete them.

Scanning and deleting are the Hub library's own. Nothing here uses the network.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from t2i.errors import ModelError, T2IError
from t2i.model_files.weight_files import check_pipeline_folder

MAX_CARD_BYTES = 1_000_000


@dataclass(frozen=True)
class Revision:
    """One commit of a model in the cache.  refs: branches and tags that point to it.  files: (path, bytes), sorted."""

    commit: str
    refs: tuple[str, ...]
    folder: Path
    bytes: int
    files: tuple[tuple[str, int], ...]


@dataclass(frozen=True)
class CachedModel:
    """A model in the cache.  revisions: that of `main` first, then by age, newest first.  bytes: each file once."""

    id: str
    bytes: int
    revisions: tuple[Revision, ...]

    @property
    def license(self) -> str | None:
        """Return the licence that the model's card names, where the card is in the cache."""
        for revision in self.revisions:
            if found := _card(revision.folder / "README.md").get("license"):
                return str(found)[:80]
        return None

    @property
    def state(self) -> str:
        """Return "here" for a complete pipeline, "partly here", or "no pipeline" for anything else."""
        folder = self.revisions[0].folder
        if not (folder / "model_index.json").is_file():
            return "no pipeline"
        try:
            check_pipeline_folder(folder)
        except ModelError:
            return "partly here"
        return "here"


def cache_folder() -> Path:
    """Return the Hub library's folder of models: HF_HUB_CACHE, else HF_HOME/hub, else ~/.cache/huggingface/hub."""
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE)


def cached_models() -> dict[str, CachedModel]:
    """Return every model in the cache by its Hub id, sorted; data sets are left out."""
    scan = _scan()
    return {
        repo.repo_id: CachedModel(repo.repo_id, repo.size_on_disk, _revisions(repo))
        for repo in sorted(scan.repos if scan else (), key=lambda repo: repo.repo_id.lower())
        if repo.repo_type == "model" and repo.revisions
    }


def unfinished_bytes() -> int:
    """Return the size of incomplete downloads in the cache, which the next download of the file resumes."""
    return sum(file.size_on_disk for file in getattr(_scan(), "incomplete_files", ()))


def freed_bytes(model: CachedModel, commits: Sequence[str]) -> int:
    """Return the bytes that deleting these commits would free: files shared with other commits stay."""
    return int(_deletion(model, commits).expected_freed_size)


def remove(model: CachedModel, commits: Sequence[str]) -> None:
    """Delete these commits of a model from the cache.  Raises T2IError where they could not be deleted."""
    _deletion(model, commits).execute()
    left = [revision.folder for revision in model.revisions if revision.commit in commits and revision.folder.exists()]
    if left:
        raise T2IError(f"{model.id} could not be deleted from the cache", f"delete {left[0].parents[1]} by hand")


def _deletion(model: CachedModel, commits: Sequence[str]) -> Any:
    """Return the Hub library's plan for deleting commits, restricted to this model.

    Asked for a commit alone, it takes the first model that has it, which may be a copy of this one.
    """
    scan = _scan()
    alone = frozenset(repo for repo in scan.repos if (repo.repo_type, repo.repo_id) == ("model", model.id))
    return replace(scan, repos=alone).delete_revisions(*commits)


def _scan() -> Any:
    """Scan the cache with the Hub's library; None where there is no cache yet.  Raises T2IError."""
    from huggingface_hub import scan_cache_dir
    from huggingface_hub.errors import CacheNotFound

    try:
        return scan_cache_dir(cache_folder())
    except CacheNotFound:
        return None
    except (OSError, ValueError) as e:
        raise T2IError(f"cannot read the cache {cache_folder()}: {e}", "HF_HUB_CACHE sets the folder") from None


def _revisions(repo: Any) -> tuple[Revision, ...]:
    found = sorted(repo.revisions, key=lambda revision: ("main" not in revision.refs, -revision.last_modified))
    return tuple(
        Revision(
            revision.commit_hash,
            tuple(sorted(revision.refs)),
            revision.snapshot_path,
            revision.size_on_disk,
            tuple(
                sorted(
                    (file.file_path.relative_to(revision.snapshot_path).as_posix(), file.size_on_disk)
                    for file in revision.files
                )
            ),
        )
        for revision in found
    )


def _card(path: Path) -> dict[str, Any]:
    """Return the metadata at the head of a model card; empty where it is missing or cannot be read."""
    from huggingface_hub.repocard import metadata_load

    try:
        return (metadata_load(path) or {}) if path.stat().st_size <= MAX_CARD_BYTES else {}
    except Exception:  # a card is free text, and its author may have written anything
        return {}
