"""Models by name from the Hugging Face hub, ``hf://OWNER/NAME@REVISION``; no torch.

Of a repository ``model.json``, ``model.safetensors`` and the card ``README.md`` are fetched and
nothing else, into the cache that all programs of the hub share; a commit in it needs no network.
A name without a revision is refused: it would mean the newest files, and one day the same command
would find other objects. A tag or branch is resolved to its commit, which is told.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from spatialembed import __version__
from spatialembed.errors import MODEL, USAGE, SpatialEmbedError, require
from spatialembed.inference.bundled import CARD, FACTS, LARGEST, WEIGHTS, summary_of
from spatialembed.inference.model_json import bad_model, parse_json

logger = logging.getLogger("spatialembed")

HUB = "hf://"
_NAME = re.compile(r"hf://([\w.-]+/[\w.-]+)(?:@([\w.-]+(?:/[\w.-]+)*))?", re.ASCII)
_COMMIT = re.compile(r"[0-9a-f]{40}")
_WAIT_S = 10.0
"""For an answer of the hub."""


@cache  # so that a branch means one commit in a process, however often it is loaded
def hub_folder(name: str) -> Path:
    """The folder in the cache of the hub that holds a model; it is fetched if need be.

    name: ``hf://OWNER/NAME@REVISION``, the revision a commit of 40 digits, a tag or a branch. What
    is offline (``HF_HUB_OFFLINE``), another hub (``HF_ENDPOINT``), a token (``HF_TOKEN``) and the
    place of the cache (``HF_HOME``) are settings of huggingface_hub.

    Raises SpatialEmbedError ``bad_setting``, ``missing_extra`` (exit 2), ``no_model``,
    ``bad_model``, ``no_hub`` (exit 4).
    """
    repository, revision = _parsed(name)
    folder = _cached(repository, revision)
    if folder is None or not _COMMIT.fullmatch(revision):
        try:
            folder = _fetched(name, repository, revision)
        except SpatialEmbedError as error:
            if folder is None or error.code != "no_hub":
                raise
            logger.warning("%s: the hub cannot be asked; the commit in the cache is taken", name)
    if folder.name != revision:
        logger.info("%s is commit %s, and may be another one later", name, folder.name)
    return folder


def cached_models() -> dict[str, str]:
    """Name, pinned to a commit, of each model in the cache, and what its card begins with."""
    if find_spec("huggingface_hub") is None:
        return {}
    from huggingface_hub import scan_cache_dir
    from huggingface_hub.errors import CacheNotFound

    try:
        repositories = scan_cache_dir().repos
    except CacheNotFound:
        return {}
    folders = {
        f"{HUB}{repository.repo_id}@{revision.commit_hash}": revision.snapshot_path
        for repository in repositories
        if repository.repo_type == "model"
        for revision in repository.revisions
    }
    return {name: summary_of(at) for name, at in sorted(folders.items()) if _is_model(at)}


def _parsed(name: str) -> tuple[str, str]:
    """Repository and revision."""
    require("huggingface_hub", "hub", "a model of the hub")
    found = _NAME.fullmatch(name)
    if found is None or ".." in name:
        what = f"{name}: not the name of a model of the hub"
        raise SpatialEmbedError("bad_setting", what, "give hf://OWNER/NAME@REVISION", USAGE)
    repository, revision = found.groups()
    if revision is None:
        what = f"{name}: no revision; the newest files may be others tomorrow"
        remedy = f"give {name}@{_newest(repository)}"
        raise SpatialEmbedError("bad_setting", what, remedy, USAGE)
    return repository, revision


def _newest(repository: str) -> str:
    """The commit of the default branch, for a remedy that can be copied; else a word for it."""
    from huggingface_hub import HfApi

    try:
        return str(HfApi().model_info(repository, timeout=_WAIT_S).sha)
    except Exception:  # the fault at hand is another
        return "REVISION, a commit, tag or branch"


def _cached(repository: str, revision: str) -> Path | None:
    """The folder of a revision that is in the cache; of a tag or branch as it was last seen."""
    from huggingface_hub import try_to_load_from_cache

    found = [try_to_load_from_cache(repository, f, revision=revision) for f in (FACTS, WEIGHTS)]
    return Path(found[0]).parent if all(isinstance(path, str) for path in found) else None  # type: ignore[arg-type]


def _fetched(name: str, repository: str, revision: str) -> Path:
    """The folder of a revision, its files fetched where the cache has them not."""
    from huggingface_hub import HfApi, hf_hub_download

    api = HfApi(library_name="spatialembed", library_version=__version__)
    with _one_line(name):
        info = api.model_info(repository, revision=revision, files_metadata=True, timeout=_WAIT_S)
        sizes = {file.rfilename: file.size or 0 for file in info.siblings or ()}
        for file in (FACTS, WEIGHTS, CARD):
            if file not in sizes and file != CARD:
                raise _no_model(name, f"not a model of spatialembed: it has no {file}")
            if sizes.get(file, 0) > LARGEST[file]:
                raise bad_model(name, f"{file} is longer than {LARGEST[file]} bytes")
        folder = Path(hf_hub_download(repository, FACTS, revision=info.sha)).parent
        if not _describes_weights(folder / FACTS):  # of another program: no gigabytes for it
            raise _no_model(name, f"not a model of spatialembed: its {FACTS} is not one of ours")
        for file in (WEIGHTS, CARD):
            if file in sizes:
                hf_hub_download(repository, file, revision=info.sha)
        if revision != info.sha:
            hf_hub_download(repository, FACTS, revision=revision)  # keeps what the name stood for
    return folder


def _describes_weights(facts: Path) -> bool:
    try:
        return "weights_sha256" in parse_json(facts.read_bytes(), str(facts))
    except SpatialEmbedError:
        return False


def _is_model(folder: Path) -> bool:
    files = folder / FACTS, folder / WEIGHTS
    return all(file.is_file() for file in files) and _describes_weights(files[0])


def _no_model(name: str, what: str, remedy: str = "check the name") -> SpatialEmbedError:
    return SpatialEmbedError("no_model", f"{name}: {what}", remedy, MODEL)


@contextmanager
def _one_line(name: str) -> Iterator[None]:
    """Faults of the hub's client, which have many lines, as ours."""
    from huggingface_hub import errors

    try:
        yield
    except SpatialEmbedError:
        raise
    except errors.GatedRepoError as error:
        remedy = "ask for access on its page, and set HF_TOKEN"
        raise _no_model(name, "its owners give access on request", remedy) from error
    except errors.RepositoryNotFoundError as error:
        what, remedy = "no such model, or a private one", "check the name; or set HF_TOKEN"
        raise _no_model(name, what, remedy) from error
    except errors.RevisionNotFoundError as error:
        raise _no_model(name, "no such revision", "give a commit, tag or branch") from error
    except errors.OfflineModeIsEnabled as error:
        what = f"{name}: not in the cache, and HF_HUB_OFFLINE is set"
        raise SpatialEmbedError("no_hub", what, "fetch it once with network", MODEL) from error
    except Exception as error:  # of several libraries, without a class in common
        of_network = isinstance(error, ConnectionError | TimeoutError)
        if isinstance(error, OSError) and error.errno is not None and not of_network:
            raise  # of the disk
        what = f"{name}: the hub cannot be asked: {' '.join(str(error).split())[:200]}"
        remedy = "check the network; what is in the cache needs none"
        raise SpatialEmbedError("no_hub", what, remedy, MODEL) from error
