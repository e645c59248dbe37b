"""Images with boxes in files of their own: YOLO's text, Pascal VOC's XML. Samples are those of data/sources/coco.py."""
