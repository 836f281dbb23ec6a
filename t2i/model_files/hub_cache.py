"""The Hub's cache on this machine: which models lie in it, how big they are, and taking them out.

The Hub's library scans and deletes; here is what a t2i user asks of it. Nothing here touches the network.
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
    """One commit of a model in the cache.  refs: the branches and tags that mean it.  files: (path, bytes), sorted."""

    commit: str
    refs: tuple[str, ...]
    folder: Path
    bytes: int
    files: tuple[tuple[str, int], ...]


@dataclass(frozen=True)
class CachedModel:
    """A model in the cache.  revisions: what `main` is first, then the newest.  bytes: all of them, each file once."""

    id: str
    bytes: int
    revisions: tuple[Revision, ...]

    @property
    def license(self) -> str | None:
        """The licence that the model's card names, where the card is in the cache."""
        for revision in self.revisions:
            if found := _card(revision.folder / "README.md").get("license"):
                return str(found)[:80]
        return None

    @property
    def state(self) -> str:
        """ "here": a whole pipeline that can be drawn with.  "partly here".  "no pipeline": something else."""
        folder = self.revisions[0].folder
        if not (folder / "model_index.json").is_file():
            return "no pipeline"
        try:
            check_pipeline_folder(folder)
        except ModelError:
            return "partly here"
        return "here"


def cache_folder() -> Path:
    """Where the Hub's library keeps models: HF_HUB_CACHE, else HF_HOME/hub, else ~/.cache/huggingface/hub."""
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE)


def cached_models() -> dict[str, CachedModel]:
    """Every model in the cache by its Hub id, sorted; data sets are left out."""
    scan = _scan()
    return {
        repo.repo_id: CachedModel(repo.repo_id, repo.size_on_disk, _revisions(repo))
        for repo in sorted(scan.repos if scan else (), key=lambda repo: repo.repo_id.lower())
        if repo.repo_type == "model" and repo.revisions
    }


def unfinished_bytes() -> int:
    """Size of downloads in the cache that broke off; the next one of the same file goes on from there."""
    return sum(file.size_on_disk for file in getattr(_scan(), "incomplete_files", ()))


def freed_bytes(model: CachedModel, commits: Sequence[str]) -> int:
    """What deleting these commits of a model would free: files that another of its commits shares stay."""
    return int(_deletion(model, commits).expected_freed_size)


def remove(model: CachedModel, commits: Sequence[str]) -> None:
    """Delete these commits of a model from the cache.  Raises T2IError where they could not be deleted."""
    _deletion(model, commits).execute()
    left = [revision.folder for revision in model.revisions if revision.commit in commits and revision.folder.exists()]
    if left:
        raise T2IError(f"{model.id} could not be deleted from the cache", f"delete {left[0].parents[1]} by hand")


def _deletion(model: CachedModel, commits: Sequence[str]) -> Any:
    """The Hub library's plan to delete commits, made for this model alone.

    By the commit it would take the first model that has it, and a copy of a model may have the same.
    """
    scan = _scan()
    alone = frozenset(repo for repo in scan.repos if (repo.repo_type, repo.repo_id) == ("model", model.id))
    return replace(scan, repos=alone).delete_revisions(*commits)


def _scan() -> Any:
    """The Hub library's own view of the cache; None where there is no cache yet.  Raises T2IError."""
    from huggingface_hub import scan_cache_dir
    from huggingface_hub.errors import CacheNotFound

    try:
        return scan_cache_dir(cache_folder())
    except CacheNotFound:
        return None
    except (OSError, ValueError) as e:
        raise T2IError(f"cannot read the cache {cache_folder()}: {e}", "HF_HUB_CACHE says where it is") from None


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
    """The metadata at the head of a model card; empty where there is none, or none that can be read."""
    from huggingface_hub.repocard import metadata_load

    try:
        return (metadata_load(path) or {}) if path.stat().st_size <= MAX_CARD_BYTES else {}
    except Exception:  # any author may have written anything there
        return {}
