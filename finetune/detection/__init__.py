"""Detection and instance segmentation: detectors on any backbone's pyramid, COCO's rules and COCO's metrics."""
