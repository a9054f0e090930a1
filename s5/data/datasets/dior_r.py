"""DIOR-R: oriented objects of 20 classes on the images of DIOR."""

from s5.data.datasets.base import TEST, TRAIN, VAL, Dataset
from s5.data.datasets.shipped import Shipped, Source, by_stem, safe_name
from s5.data.folders import find_files
from s5.data.splits import IMAGE_EXTENSIONS

_URL = "https://gcheng-nwpu.github.io"
_ORIENTED = "Oriented Bounding Boxes"

CLASSES = tuple(
    """
    airplane airport baseballfield basketballcourt bridge chimney expressway-service-area
    expressway-toll-station dam golffield groundtrackfield harbor overpass ship stadium storagetank
    tenniscourt trainstation vehicle windmill
    """.split()
)


class DiorR(Dataset):
    """23,463 JPEG images of 800 x 800 pixels; XML annotations of oriented boxes.

    Results are usually of training on train and val together, scored on test.
    """

    name = "dior_r"
    title = "DIOR-R"
    summary = "DIOR-R -> NAME, whole images with oriented objects, in the official parts"
    url = _URL
    licence = "not stated by its authors; ask them before any use but research"
    citation = (
        "Cheng et al., Anchor-free Oriented Proposal Generator for Object Detection, TGRS 2022; "
        "images: Li et al., Object detection in optical remote sensing images, ISPRS 2020"
    )
    layout = f"""expected below {{src}}:
  JPEGImages-trainval/00001.jpg ...                      the images of train and val
  JPEGImages-test/11726.jpg ...                          the images of test
  Annotations/{_ORIENTED}/00001.xml ...      the oriented annotations of all
  ImageSets/Main/train.txt, val.txt, test.txt            names of the images of each part
(Folders in between do not matter.)
{_URL}"""
    class_lists = {"dior_r": CLASSES}
    counts = {TRAIN: 5862, VAL: 5863, TEST: 11738}
    splits = {TRAIN: (TRAIN,), VAL: (VAL,), TEST: (TEST,)}
    optional = (TRAIN, VAL, TEST)
    patch = 0
    inner_archives = None

    @classmethod
    def find(cls, shipped: Shipped) -> list[Source]:
        """The images that the official lists name."""
        files = find_files(shipped.src, leave_out=shipped.folder)
        texts = by_stem(path for path in files if _ORIENTED in path.parts and path.suffix.lower() == ".xml")
        lists = {path.stem: path for path in files if path.parent.name == "Main" and path.suffix == ".txt"}
        parts = {part: lists[part] for part in cls.splits if part in lists}
        images = by_stem(path for path in files if path.suffix.lower() in IMAGE_EXTENSIONS)
        if not (texts and parts and images):
            raise shipped.incomplete(
                f"{len(images)} images, {len(texts)} oriented annotations, {len(parts)} of 3 lists"
            )
        return [
            Source(
                key=f"{part}/{stem}",
                group=part,
                stem=safe_name(stem),
                image=images.get(stem) or shipped.src / f"{stem}.jpg",
                mask=texts.get(stem) or shipped.src / "Annotations" / _ORIENTED / f"{stem}.xml",
            )
            for part, path in parts.items()
            for stem in sorted(set(shipped.read_text(path).split()))
        ]
