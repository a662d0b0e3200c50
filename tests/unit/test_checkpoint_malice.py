"""Checkpoints whose checksums are right and whose contents are not: nothing in them runs."""

import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import BytesStorageMetadata, StorageMeta

from dsm_engine.errors import DsmError
from dsm_engine.files import file_xxh3, read_json, write_json
from dsm_engine.training.checkpoint import latest_checkpoint
from dsm_engine.training.config import TrainRecipe
from dsm_engine.training.convert import convert
from dsm_engine.training.loop import train


class _Exploit:
    """Makes a file when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self._marker = marker

    def __reduce__(self) -> tuple[Callable[[Path], None], tuple[Path]]:
        return Path.touch, (self._marker,)


@pytest.fixture(scope="module")
def finished(
    tmp_path_factory: pytest.TempPathFactory, sample_data: Path, make_recipe: Any
) -> TrainRecipe:
    """The recipe of a run of one step."""
    recipe = make_recipe(sample_data, tmp_path_factory.mktemp("malice") / "run", training__steps=1)
    train(TrainRecipe.model_validate(recipe))
    return TrainRecipe.model_validate(recipe)


@pytest.fixture
def run(finished: TrainRecipe, tmp_path: Path) -> Path:
    """A copy to spoil."""
    shutil.copytree(finished.run, tmp_path / "run")
    return tmp_path / "run"


@pytest.fixture
def refused(run: Path, finished: TrainRecipe) -> Callable[[str], None]:
    """Asserts that neither an export nor a resumption takes the spoilt copy, signed again."""

    def check(match: str) -> None:
        _sign(_checkpoint(run))
        with pytest.raises(DsmError, match=match):
            convert(run, run.with_name("out"))
        assert not run.with_name("out").exists()
        with pytest.raises(DsmError, match=match):
            train(finished.model_copy(update={"run": run}), resume=True)

    return check


def _checkpoint(run: Path) -> Path:
    folder = latest_checkpoint(run)
    assert folder is not None
    return folder


def _sign(folder: Path) -> None:
    """What an attacker does who can change a file: the checksums are right again."""
    description = read_json(folder / "dsm.json")
    description["files"] = {name: file_xxh3(folder / name) for name in description["files"]}
    write_json(folder / "dsm.json", description)


def _spoil_metadata(run: Path, change: Callable[[Any], object]) -> None:
    path = _checkpoint(run) / ".metadata"
    metadata = FileSystemReader(path.parent).read_metadata()
    metadata.storage_meta = StorageMeta()
    change(metadata)
    path.write_bytes(pickle.dumps(metadata))


def test_a_checkpoint_signed_again_is_still_one(run: Path) -> None:
    _spoil_metadata(run, lambda metadata: None)
    _sign(_checkpoint(run))
    assert convert(run, run.with_name("out")).num_parameters > 0


@pytest.mark.parametrize("whole", [True, False])
def test_code_in_the_metadata_is_refused_and_not_run(run: Path, refused: Any, whole: bool) -> None:
    marker = run.with_name("marker")
    if whole:
        (_checkpoint(run) / ".metadata").write_bytes(pickle.dumps(_Exploit(marker)))
    else:
        _spoil_metadata(run, lambda it: setattr(it, "planner_data", _Exploit(marker)))
    refused(r"\.metadata: is not what a checkpoint .* asks for pathlib\.")
    assert not marker.exists()
    pickle.loads((_checkpoint(run) / ".metadata").read_bytes())
    assert marker.exists(), "the code would not run under any reader"


@pytest.mark.parametrize("name", ["builtins.eval", "torch.load", "torch.serialization.load"])
def test_a_name_within_an_allowed_module_is_refused_too(run: Path, refused: Any, name: str) -> None:
    module, _, function = name.rpartition(".")
    payload = f"c{module}\n{function}\n(Vprint\ntR.".encode()
    (_checkpoint(run) / ".metadata").write_bytes(payload)
    refused(f"asks for {name}")


def test_code_in_the_common_state_is_refused_and_not_run(run: Path, refused: Any) -> None:
    marker = run.with_name("marker")
    path = _checkpoint(run) / "common.pt"
    torch.save({"iteration": 1, "updates": 1, "more": _Exploit(marker)}, path)
    refused(r"common\.pt: is not what a checkpoint")
    assert not marker.exists()
    torch.load(path, weights_only=False)
    assert marker.exists(), "the code would not run under any reader"


def test_code_in_a_tensor_file_is_refused_and_not_run(run: Path, refused: Any) -> None:
    marker = run.with_name("marker")
    path = _checkpoint(run) / "__0_0.distcp"
    torch.save(_Exploit(marker), path)

    def point_there(metadata: Any) -> None:
        for place in metadata.storage_data.values():
            place.offset, place.length = 0, path.stat().st_size

    _spoil_metadata(run, point_there)
    refused("cannot be loaded")
    assert not marker.exists()


def test_an_object_in_the_place_of_a_tensor_is_refused(run: Path, refused: Any) -> None:
    def disguise(metadata: Any) -> None:
        name = "decoder.final_layernorm.weight"
        assert name in metadata.state_dict_metadata
        metadata.state_dict_metadata[name] = BytesStorageMetadata()

    _spoil_metadata(run, disguise)
    refused("names objects that are no tensors")


def test_tensors_outside_the_folder_are_refused(run: Path, refused: Any) -> None:
    outside = run.with_name("outside.distcp")
    shutil.copy(_checkpoint(run) / "__0_0.distcp", outside)

    def escape(metadata: Any) -> None:
        for place in metadata.storage_data.values():
            place.relative_path = str(outside)

    _spoil_metadata(run, escape)
    refused(r"points at '.*outside\.distcp', a file that dsm\.json does not name")


@pytest.mark.parametrize("content", [b"", b"\x80\x04.", pickle.dumps(7), pickle.dumps({})])
def test_metadata_that_is_no_metadata_is_refused(run: Path, refused: Any, content: bytes) -> None:
    (_checkpoint(run) / ".metadata").write_bytes(content)
    refused(r"\.metadata: is not what a checkpoint")


def test_the_common_state_of_another_step_is_refused(run: Path, refused: Any) -> None:
    torch.save({"iteration": 2, "updates": 2}, _checkpoint(run) / "common.pt")
    refused(r"common\.pt: is of step 2, dsm\.json says 1")
