"""Reads every byte of a dataset and says where its first damage is: checksums, then structure.

The structure is checked even where all checksums agree: a manifest vouches for what was written,
not for that it was right.
"""

from pathlib import Path
from typing import TYPE_CHECKING

from dsm_engine.data.checksums import DamagedChunk, find_damaged_chunk
from dsm_engine.data.indexed_dataset import IndexedDataset
from dsm_engine.data.manifest import MANIFEST_SUFFIX
from dsm_engine.errors import DsmError

if TYPE_CHECKING:
    from dsm_engine.data.tokenized_dataset import TokenizedDataset

# The index first: it says which documents a part of the other files covers.
_ORDER = (".idx", ".bin", ".spans", ".attributes")


def verify_tokenized(dataset: "TokenizedDataset") -> None:
    """Checks all chunks of all files, then every table; raises DsmError at the first damage."""
    for suffix in _ORDER:
        file = dataset.manifest["files"][suffix]
        path = dataset.path_of(suffix)
        damage = find_damaged_chunk(
            path,
            num_bytes=file["bytes"],
            chunk_bytes=dataset.manifest["chunk_bytes"],
            chunks=file["chunks"],
        )
        if damage is not None:
            covered = _covered_documents(dataset, suffix, damage)
            raise DsmError(
                f"{path}: is damaged: expected xxh3 {damage.expected} from"
                f" {dataset.manifest_path.name} for bytes {damage.begin} to {damage.end}"
                f"{covered}, found {damage.found}: restore the file or preprocess the sources again"
            )
    dataset.check_tables()
    dataset.indexed.check_token_ids(dataset.vocab_size)


def is_bare(prefix: Path) -> bool:
    """Whether only PREFIX.bin and PREFIX.idx stand there: Megatron's files without a manifest."""
    names = {suffix: prefix.with_name(prefix.name + suffix) for suffix in _ORDER}
    sidecars = (
        names[".spans"],
        names[".attributes"],
        prefix.with_name(prefix.name + MANIFEST_SUFFIX),
    )
    return (
        names[".bin"].is_file()
        and names[".idx"].is_file()
        and not any(path.exists() or path.is_symlink() for path in sidecars)
    )


def verify_bare(prefix: Path) -> IndexedDataset:
    """Checks the tables of Megatron's .bin and .idx; raises DsmError at the first damage."""
    dataset = IndexedDataset(prefix)
    dataset.check_tables()
    return dataset


def _covered_documents(dataset: "TokenizedDataset", suffix: str, damage: DamagedChunk) -> str:
    """` (documents 3 to 5)` where the damaged part belongs to some, else nothing."""
    if suffix == ".bin":
        covered = dataset.indexed.documents_in(damage.begin, damage.end)
    elif suffix == ".spans":
        covered = dataset.span_table.documents_in(damage.begin, damage.end)
    else:
        return ""
    if not covered:
        return ""
    if len(covered) == 1:
        return f" (document {covered[0]})"
    return f" (documents {covered[0]} to {covered[-1]})"
