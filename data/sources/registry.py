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
    "table": "data.sources.tables.listed_images",
    "scenes": "data.sources.scenes",
}
"""Modules, from general to special: `--format auto` takes the last one that recognises a source."""
