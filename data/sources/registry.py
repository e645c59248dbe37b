"""Which kinds of sources `data/main.py write` reads, by the name that `--format` takes. Imports none of them.

A kind is a module that holds a ``FORMAT`` (data/sources/formats.py). A file from outside adds itself as it is imported:

    FORMATS["frames"] = __name__
"""

FORMATS = {
    "folder": "data.sources.image_folder",
    "labels": "data.sources.label_maps",
    "webdataset": "data.sources.reshard",
    "imagenet": "data.sources.imagenet",
    "coco": "data.sources.coco",
    "yolo": "data.sources.boxes.yolo",
    "voc": "data.sources.boxes.voc",
    "table": "data.sources.tables.listed_images",
    "scenes": "data.sources.scenes",
}
"""Modules, by name. Several that recognise a source are asked about, but for those that another one ``narrows``."""
