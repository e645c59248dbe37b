"""What a segmenter says about one picture: the class of each pixel."""

from pathlib import Path

import numpy as np
import numpy.typing as npt

from finetune.prediction import LabelImage, Picture, Prediction, Predictor
from finetune.segmentation.pictures import draw_label_map, draw_similarities, has_queries, predict_label_map
from finetune.segmentation.trained import load_trained


def as_written(labels: npt.NDArray[np.integer], *, num_classes: int) -> LabelImage:
    """Return a label map in as few bits as its classes need, 8 or 16."""
    return labels.astype(np.uint8 if num_classes <= 2**8 else np.uint16)


def label_predictor(path: Path, weights: str | None) -> Predictor:
    """Return the predictor of a segmentation run or checkpoint.

    Raises:
        UserError: it has no such weights.
    """
    trained = load_trained(path, weights)

    def predict(picture: Picture) -> Prediction:
        labels = predict_label_map(trained, picture)
        shares = np.bincount(labels.ravel(), minlength=len(trained.classes)) / labels.size
        present = {name: float(share) for name, share in zip(trained.classes, shares, strict=True) if share}
        overlay = draw_label_map(picture, labels, classes=trained.classes)
        return Prediction(
            record={"shares": present},
            overlay=overlay,
            label_map=as_written(labels, num_classes=len(trained.classes)),
            similarities=draw_similarities(trained, picture) if has_queries(trained) else None,
        )

    return predict
