"""Features of images by a pretrained ViT, at any size. ``castvision embed``."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from castvision_cli.arguments import (
    add_bands_argument,
    add_cluster_argument,
    add_device_argument,
    add_output_arguments,
    add_scale_argument,
    check_device,
    natural,
    new_parser,
    positive,
    resolve_device,
    share,
)
from castvision_cli.early.images import Told, areas_fit, check_images, check_tiles, told_of
from castvision_cli.early.light import without_models
from castvision_cli.early.paths import check_cluster, check_given, check_model, check_output, check_sources
from castvision_cli.resuming import begin, open_output, settings_of_run
from castvision_cli.stopping import exit_code, told

if TYPE_CHECKING:
    from collections.abc import Sequence

    from castvision.inference.embedding import Record

_DESCRIPTION = """\
Features of photographs, rasters and slides by a pretrained ViT, at their own size: plain ViTs of timm get near and far
attention on the fly, whose cost grows with the image and not with its square.

writes: features/NAME.npy (.zarr, .tif): a vector for each patch, (rows, cols, C), NaN where there is no data
        embeddings/NAME.npz: class_token and mean (C,); embeddings.npz: those of all images
        tiles/NAME.h5, with --write tiles: features (N, C) and coords (N, 2) of a slide's tiles, for CLAM and TRIDENT
        pca/NAME.png, similar/NAME.png, records/NAME.json (size, scale, place on the ground), summary.json
"""

_EPILOG = """\
examples:
  %(prog)s photo.jpg --model vit_small_patch14_dinov2.lvd142m --output out --pca --similar-to 420,310
  %(prog)s scene.tif --model vit_base_patch16_224.mae --weights mae.safetensors --output out --tile 1024 --format tif
  %(prog)s slides/ --model vit_base_patch14_dinov2 --attention full --output out --write tiles --mpp 0.5 --tissue

exit code: 0 all images done, 1 some images failed (named at the end), 2 wrong arguments, nothing written
"""
_OF_PARTS: dict[str, dict[str, object]] = {
    "tiles": {"pool": None, "min_foreground": 0.25},
    "dense": {"format": "npy", "dtype": "float16"},
}
"""Options that mean something for one thing that is written only, and their defaults."""


def place(text: str) -> tuple[int, int]:
    """A parser's type: a pixel as Y,X."""
    parts = [part.strip() for part in text.split(",")]
    if len(parts) != 2 or not all(part.isdecimal() for part in parts):
        raise argparse.ArgumentTypeError(f"expected a pixel as Y,X (row first), such as 420,310, got {text!r}")
    return int(parts[0]), int(parts[1])


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = new_parser("castvision embed", _DESCRIPTION, _EPILOG)
    add = parser.add_argument
    add("inputs", nargs="+", metavar="INPUT", help="images, folders of images, patterns such as 'scans/*.tif'")
    add("--model", required=True, help="a ViT's name, of timm's or ours, a checkpoint, or a folder in timm's layout")
    add("--weights", type=Path, metavar="FILE", help="weights for a name (default: from the hub)")
    told = "of a ViT of timm: near_far, or full, the baseline (default: near_far; of a checkpoint that of its training)"
    add("--attention", choices=["near_far", "full"], help=told)
    add_output_arguments(parser, "features")
    add_cluster_argument(parser)
    add("--resume", action="store_true", help="go on with a run that was interrupted: images already done are skipped")
    group = parser.add_argument_group("what is written")
    add = group.add_argument
    words = ["dense", "image", "tiles"]
    add("--write", nargs="+", choices=words, default=words[:2], help="default: dense image; tiles: of slides, as HDF5")
    add("--format", choices=["npy", "zarr", "tif"], default="npy", help="of dense features (default: npy)")
    add("--dtype", choices=["float16", "float32"], default="float16", help="of dense features (default: float16)")
    pool = "what becomes of a slide's tile (default: class, the class token; mean of a model without one)"
    add("--pool", choices=["class", "mean", "class+mean"], help=pool)
    add("--pca", action="store_true", help="a picture of the first three principal components")
    add("--similar-to", type=place, metavar="Y,X", help="a picture of how similar all is to this pixel of the image")
    group = parser.add_argument_group("how images are read")
    add = group.add_argument
    tile = "side of a tile (default: the whole image; of --write tiles the size that the model was trained at)"
    add("--tile", type=positive, metavar="PIXELS", help=tile)
    overlap = "shared by neighbouring tiles (default: an eighth of a tile; of --write tiles 0)"
    add("--overlap", type=natural, metavar="PIXELS", help=overlap)
    add_scale_argument(group)
    add_bands_argument(group)
    where = group.add_mutually_exclusive_group()
    where.add_argument("--tissue", action="store_true", help="work only on the tissue of a slide: what is coloured")
    told = "work only where this image is > 0; for several images a folder with the same names"
    where.add_argument("--mask", type=Path, help=told)
    told = "leave out a slide's tiles with a smaller share of tissue or mask (default: 0.25)"
    add("--min-foreground", type=share, default=0.25, help=told)
    add("--batch-size", type=positive, default=4, help="tiles at once (default: 4)")
    add_device_argument(group)
    add("--precision", choices=["fp32", "bf16"], default="fp32", help="of the model (default: fp32)")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Embed.

    Args:
        argv: Arguments; None = the process's.

    Returns:
        0 all done, 1 some images failed, 2 wrong arguments (nothing was written), 130 interrupted, 143
        terminated.
    """
    parser = build_parser()
    arguments = parser.parse_args(argv)
    try:
        _check_words(arguments)
        # NOTE: imported here, so that --help and what is wrong so far answer at once.
        with without_models():
            from castvision.inference.files import ALL_SUFFIXES, expand_patterns, find_images, match_masks
            from castvision.inference.suited import check_place

        images = find_images(expand_patterns(arguments.inputs), outside=arguments.output, suffixes=ALL_SUFFIXES)
        settings = settings_of_run(arguments)
        output = open_output(arguments, settings, images)
        masks = match_masks(arguments.mask, images)
        facts = told_of(arguments.model)
        check_tiles(arguments, facts)
        look = areas_fit(masks, lambda path, reader: check_place(reader, arguments.similar_to))
        check_images(images, facts, arguments.bands, look)
        device = resolve_device(arguments.device)
        from castvision.inference.embedding import EmbeddingRun, Options
        from castvision.inference.feature_model import load_feature_model

        check_cluster(arguments.cluster)
        model = load_feature_model(
            arguments.model,
            weights=arguments.weights,
            attention=arguments.attention,
            device=device,
        )
        same = (
            "dtype tile overlap mpp bands tissue min_foreground pool batch_size precision pca similar_to resume".split()
        )
        chosen = {name: getattr(arguments, name) for name in same}
        options = Options(write=tuple(arguments.write), kind=arguments.format, **chosen)
        run = EmbeddingRun(model, output, options)
        loaded = Told(model.name, "features", seen=model.predictor.parts.input)
        check_images(images, loaded, arguments.bands, lambda path, reader: run.check(reader))
        begin(output, settings, images, is_resumed=arguments.resume)
    except (ValueError, TypeError, OSError, ImportError) as error:
        print(f"{parser.prog}: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    from rich.console import Console

    from castvision_cli.images import each_image, print_end

    console = Console()
    try:
        if arguments.cluster is not None:
            from castvision_cli import clustered

            weights = None if arguments.weights is None else arguments.weights.resolve()
            work = clustered.Embedding(
                arguments.model, weights, arguments.attention, str(device), output.path.resolve(), options
            )
            failed = clustered.each_image_on(
                arguments.cluster, work, images, masks, lambda path, name: describe(run.take(path, name)), console
            )
        else:
            failed = each_image(
                images,
                lambda path, name, report: describe(run.embed(path, name, masks.get(path), report)),
                console,
            )
    except OSError as error:
        print(f"{parser.prog}: error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt as stop:
        print(f"{parser.prog}: {told(stop)}; the same command with --resume goes on", file=sys.stderr)
        return exit_code(stop)
    run.write_tables(failed)
    return print_end(console, len(images), failed, f"done; results in {output.path}")


def _check_words(arguments: argparse.Namespace) -> None:
    """Refuse what is wrong by its words alone: paths that are not there, options of what is not written.

    Raises:
        ValueError: It names them; OSError likewise.
    """
    check_sources(arguments.inputs)
    check_model(arguments.model)
    check_output(arguments.output, is_open=arguments.overwrite or arguments.resume)
    check_given(arguments.mask, "mask or folder of masks")
    check_given(arguments.weights, "file of weights")
    check_device(arguments.device)
    written, given = set(arguments.write), vars(arguments)
    for part, defaults in _OF_PARTS.items():
        asked = [f"--{name.replace('_', '-')}" for name, default in defaults.items() if given[name] != default]
        if asked and part not in written:
            raise ValueError(f"{', '.join(asked)} belongs to --write {part}, got --write {' '.join(arguments.write)}")
    if arguments.overlap is not None and arguments.tile is None and "tiles" not in written:
        raise ValueError("--overlap belongs to --tile: without it the model sees the whole image; give both or none")


def describe(record: Record) -> str:
    """What is said of a finished image on one line."""
    from castvision_cli.images import remarks

    height, width = record["size"]
    parts = [f"{record['image']}: {height} × {width}"]
    if "tokens" in record:
        rows, cols = record["tokens"]
        parts.append(f"{rows} × {cols} tokens of {record['channels']} channels")
    if "slide_tiles" in record:
        parts.append(f"{record['slide_tiles']:,} tiles ({record['slide_tiles_skipped']:,} left out)")
    return ", ".join(parts) + remarks(record)
