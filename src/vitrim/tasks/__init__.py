"""What a model is trained for: the losses and the metrics of one class or of several labels per image."""

from vitrim.tasks.base import LOSSES, TASKS, Metric, MetricError, Task
from vitrim.tasks.classify import Accuracy, BinaryCrossEntropy, Classify, CrossEntropy, Focal
from vitrim.tasks.multilabel import Asymmetric, LabelMetric, MultiLabel, average_precision

__all__ = [
    "LOSSES",
    "TASKS",
    "Accuracy",
    "Asymmetric",
    "BinaryCrossEntropy",
    "Classify",
    "CrossEntropy",
    "Focal",
    "LabelMetric",
    "Metric",
    "MetricError",
    "MultiLabel",
    "Task",
    "average_precision",
]
