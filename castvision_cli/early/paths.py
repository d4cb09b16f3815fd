"""What can be said of paths before the library is imported, which takes seconds: the errors that are made most often.

The library checks all of it again, for those who call it from Python; words are the same.
"""

from __future__ import annotations

import glob
import json
import os
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from castvision_cli.early.light import without_models
from castvision_cli.early.values import check_model_name

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

_LOCAL = "local-dir:"
_HUBS = ("hf-hub:", "hf_hub:")
_CHECKPOINTS = (".ckpt", ".pt", ".pth", ".safetensors", ".onnx")
_PHOTOGRAPHS = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".webp", ".bmp", ".gif")
DECODED_WHOLE = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif")
"""Kinds that Pillow alone reads; others have readers of their own."""
_LARGE = 1 << 24
"""Bytes of a file, and pixels of an image, that are decoded in a fraction of a second."""
_HEAD = 512


def check_sources(sources: Iterable[str | Path]) -> None:
    """Refuse images and folders that do not exist, and images alone that are text.

    Args:
        sources: Files, folders and patterns.

    Raises:
        FileNotFoundError: A source that does not exist, or a pattern that fits nothing.
        ValueError: Of the images none is one.
    """
    names = [str(source) for source in sources]
    for name in names:
        if not Path(name).exists() and not (glob.has_magic(name) and glob.glob(name, recursive=True)):
            if glob.has_magic(name):
                raise FileNotFoundError(f"no file fits the pattern {name!r}; check it")
            raise FileNotFoundError(f"no such image or folder: {name!r}; check the path")
    if all(Path(name).suffix.lower() in _PHOTOGRAPHS and _is_text(Path(name)) for name in names):
        raise ValueError(f"expected an image, got text in {names[0]!r}; name an image")
    if len(names) == 1 and Path(names[0]).is_file() and Path(names[0]).suffix.lower() in DECODED_WHOLE:
        _decode(Path(names[0]))
    if len(names) == 1 and Path(names[0]).is_dir() and not _holds_files(Path(names[0])):
        raise FileNotFoundError(f"no images in {names[0]!r}: the folder is empty; check the path")


def check_model(source: str) -> None:
    """Refuse a checkpoint that does not exist, is text or damaged, a folder without a model, an unknown name.

    Args:
        source: As `castvision.inference.predictor.load_model` takes it.

    Raises:
        FileNotFoundError: No such file, or no ``config.json`` in the folder.
        ValueError: Text, a file without the parts its kind begins and ends with or with a part that its checksum does
            not fit, or a name that is no model's.
    """
    if source.startswith(_HUBS):
        return
    path = Path(source.removeprefix(_LOCAL))
    if source.startswith(_LOCAL) or path.is_dir():
        if not (path / "config.json").is_file():
            raise FileNotFoundError(
                f"expected config.json and model.safetensors in {str(path)!r}, found no config.json"
            )
    elif not path.is_file():
        if path.suffix in _CHECKPOINTS or len(path.parts) > 1:
            raise FileNotFoundError(f"no such checkpoint or folder: {source!r}; check the path")
        check_model_name(source)
    elif _is_text(path):
        raise ValueError(f"cannot read checkpoint {source!r} (damaged, or of another program): it is text")
    elif path.suffix in _CHECKPOINTS and not _is_container(path):
        raise ValueError(f"cannot read checkpoint {source!r}, is it damaged? it does not begin or end as its kind does")
    elif (damaged := _damaged_part(path)) is not None:
        raise ValueError(
            f"the checkpoint {source!r} is damaged: the checksum of its part {damaged!r} is another one; copy it "
            "again, or take an older checkpoint"
        )


def check_run_folder(
    verb: str,
    words: Sequence[str],
    config: Path | None,
    contents: Sequence[Mapping[str, Any]],
    *,
    is_resumed: bool = False,
) -> None:
    """Refuse to train into the folder of a finished run, to go on with none, and to evaluate no checkpoint.

    Args:
        verb: "fit", "validate", "test" or "predict".
        words: The command line.
        config: The last configuration.
        contents: Of all of them.
        is_resumed: Whether an unfinished run is to go on.

    Raises:
        FileExistsError: See `castvision.run_folder.folder_to_train`.
        FileNotFoundError: See there, and `castvision.run_folder.folder_to_evaluate`.
        OSError: See `check_output`.
    """
    with without_models():
        from castvision.run_folder import folder_to_evaluate, folder_to_train

    found: dict[str, Any] = {}
    for content in contents:
        found |= {name: content[name] for name in ("run_dir", "ckpt_path") if content.get(name)}
    given = _value_of(("--run_dir",), words, found.get("run_dir"))
    if verb == "fit":
        check_output(folder_to_train(given, config, is_resumed=is_resumed)[0], is_open=True)
    else:
        folder_to_evaluate(given, config, _value_of(("--ckpt_path",), words, found.get("ckpt_path")))


def check_given(path: Path | None, what: str) -> None:
    """Refuse a path that was given and does not exist.

    Raises:
        FileNotFoundError: It names the path.
    """
    if path is not None and not path.exists():
        raise FileNotFoundError(f"no such {what}: {str(path)!r}; check the path")


def check_output(path: Path, *, is_open: bool) -> None:
    """Refuse an output folder that is a file or, unless it is open to new files, holds something.

    Raises:
        NotADirectoryError: A file stands there, or in place of a folder above it.
        PermissionError: It may not be written to.
        FileExistsError: The folder is not empty.
    """
    there = next(each for each in (path, *path.absolute().parents) if each.exists())
    if not there.is_dir():
        raise NotADirectoryError(f"expected a folder for the output, got a file: {str(there)!r}; name another folder")
    if not os.access(there, os.W_OK):
        raise PermissionError(f"cannot write into {str(there)!r}: no permission; name another folder for the output")
    if not is_open and path.is_dir() and any(path.iterdir()):
        raise FileExistsError(f"output folder is not empty: {str(path)!r}; name a new one or pass --overwrite")


def read_config(path: Path) -> dict[str, Any]:
    """A configuration, as far as its keys go.

    Raises:
        ValueError: No YAML, or no map of sections.
    """
    import yaml

    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"cannot read the configuration {str(path)!r}: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise ValueError(f"expected sections such as model and data in the configuration {str(path)!r}, found none")
    if _contains_itself(content, ()):
        raise ValueError(f"expected a configuration that ends in {str(path)!r}, got an alias inside its own anchor")
    if not isinstance(content.get("trainer", {}), dict):
        raise ValueError(
            f"expected arguments in the section trainer of {str(path)!r}, got {content['trainer']!r}; give some, or "
            "leave the section out"
        )
    return content


def _contains_itself(node: Any, above: tuple[int, ...]) -> bool:
    """Whether a map or a list stands inside itself, as YAML's aliases allow and no reader of arguments survives."""
    if not isinstance(node, dict | list):
        return False
    inside = node.values() if isinstance(node, dict) else node
    return id(node) in above or any(_contains_itself(each, (*above, id(node))) for each in inside)


def check_paths_of_run(words: Sequence[str], contents: Sequence[Mapping[str, Any]]) -> None:
    """Refuse data and weights to start from that do not exist.

    Args:
        words: The command line.
        contents: Of the configurations.

    Raises:
        FileNotFoundError: It names the path and the argument.
    """
    root = _value("data", "root", words, contents)
    if isinstance(root, str) and root and not Path(root).exists() and not _downloads(words, contents):
        raise FileNotFoundError(
            f"no such folder or list: {root!r}; expected the data there, such as one folder for each class, or images "
            "and masks; check data.root"
        )
    if (
        isinstance(root, str)
        and Path(root).is_dir()
        and not _holds_files(Path(root))
        and not _downloads(words, contents)
    ):
        raise FileNotFoundError(f"no images in {root!r}: the folder is empty; check data.root")
    if isinstance(root, str) and Path(root).is_dir() and not _downloads(words, contents):
        _check_layout(Path(root), str(_value_of(("--data", "--data.class_path"), words, _class_path(contents))))
    weights = _value("model", "init_from", words, contents)
    if isinstance(weights, str) and weights and not Path(weights).exists():
        raise FileNotFoundError(f"expected a checkpoint at {weights!r}, found no such file; check the path")
    if isinstance(weights, str) and weights:
        check_model(weights)


def _check_layout(root: Path, kind: str) -> None:
    """Refuse a folder of images that has none of the folders this data module reads.

    Raises:
        FileNotFoundError: It names what is expected.
    """
    kind = kind.rpartition(".")[2]
    if kind == "ImageFolderDataModule":
        for folder in (root / "train", root / "val"):
            if not folder.is_dir():
                raise FileNotFoundError(f"expected a folder {str(folder)!r} with one folder for each class, found none")
    if kind == "SegmentationDataModule" and not (root / "train.csv").is_file():
        folders = ("train/images", "images/train", "images")
        if not any((root / folder).is_dir() for folder in folders):
            raise FileNotFoundError(
                f"found no images and masks in {str(root)!r}; expected one of its folders {', '.join(folders)} and "
                "masks beside it in the same way, or train.csv and val.csv, see docs/data.md"
            )


def _class_path(contents: Sequence[Mapping[str, Any]]) -> str | None:
    named = [content["data"].get("class_path") for content in contents if isinstance(content.get("data"), dict)]
    return next((name for name in reversed(named) if name), None)


def _downloads(words: Sequence[str], contents: Sequence[Mapping[str, Any]]) -> bool:
    """Whether the folder of data may be made yet."""
    return _value("data", "download", words, contents) not in (None, False, "false", "False")


def _value(part: str, key: str, words: Sequence[str], contents: Sequence[Mapping[str, Any]]) -> Any:
    """An argument as it stands on the command line, or else in the last configuration that has it."""
    flags = (f"--{part}.{key}", f"--{part}.init_args.{key}")
    found = None
    for content in contents:
        section = content.get(part)
        if isinstance(section, dict) and isinstance(section.get("init_args"), dict):
            found = section["init_args"].get(key, found)
    return _value_of(flags, words, found)


def _value_of(flags: Sequence[str], words: Sequence[str], default: Any) -> Any:
    """The last value of any of these flags on the command line."""
    found = default
    for place, word in enumerate(words):
        flag, is_joined, value = word.partition("=")
        if flag in flags:
            found = value if is_joined else next(iter(words[place + 1 : place + 2]), None)
    return None if found == "null" else found


def _damaged_part(path: Path) -> str | None:
    """The first part of a zip, as torch's files are, whose checksum is another one; None if all is well."""
    if not zipfile.is_zipfile(path):
        return None
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.testzip()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
        return "(its directory)"


def _holds_files(folder: Path) -> bool:
    """Whether there is any file in a folder or in those in it."""
    return any(files for _, _, files in os.walk(folder, followlinks=True))


def _decode(path: Path) -> None:
    """Refuse a photograph that cannot be decoded, such as one that was cut short.

    Raises:
        ValueError: It names the file.
    """
    from PIL import Image

    if path.stat().st_size == 0:
        raise ValueError(f"cannot read image {str(path)!r}: the file is empty (0 bytes); copy or export it again")
    if path.stat().st_size > _LARGE:
        return
    try:
        with Image.open(path) as image:
            if image.width * image.height <= _LARGE:  # larger ones are for the reader, which has a limit of its own
                image.load()
    except (OSError, SyntaxError, ValueError) as error:
        raise ValueError(
            f"cannot read image {str(path)!r}: {' '.join(str(error).split())}; is it damaged, or of another kind?"
        ) from error
    except Image.DecompressionBombError:
        return


def _is_container(path: Path) -> bool:
    """Whether a file of weights has its outer parts: a zip's directory, safetensors' table, a pickle's first byte."""
    if path.suffix == ".safetensors":
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if not 2 <= length <= path.stat().st_size - 8:
                return False
            try:
                return isinstance(json.loads(file.read(length)), dict)
            except ValueError:
                return False
    if path.suffix == ".onnx":
        return path.stat().st_size > 0  # a file of ONNX begins with any field
    with path.open("rb") as file:
        return zipfile.is_zipfile(path) or file.read(1) == b"\x80"  # torch's files before 1.6 are pickles


def _is_text(path: Path) -> bool:
    """Whether a file begins with nothing but text, as no image and no checkpoint does."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        head = file.read(_HEAD)
    return bool(head) and all(byte in b"\t\n\r\f" or 32 <= byte < 127 for byte in head)


def check_cluster(address: str | None) -> None:
    """Refuse what is no address of a cluster, or needs what is not installed; None: no cluster.

    Raises:
        ImportError: Dask is not installed.
        ValueError: No such address.
    """
    if address is not None:
        from castvision.inference.cluster import check_address

        check_address(address)
