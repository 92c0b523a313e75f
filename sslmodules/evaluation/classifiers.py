"""What features are worth to classifiers that are fitted in one go, and how well they cluster by themselves.

Labels are numbers of classes (N,), or (N, C) of 0 and 1 where an image may have several. The weighted nearest
neighbours are :func:`sslmodules.metrics.knn_scores`.
"""

import warnings
from collections.abc import Callable

import torch
from sklearn.cluster import KMeans
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import normalized_mutual_info_score
from sklearn.multiclass import OneVsRestClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor
from torch.nn import functional as F
from torchmetrics.functional.classification import multilabel_average_precision

from sslmodules.datamodules.labels import balanced_indices

FRACTIONS = (0.1, 0.01)  # of the labels, where few are left


def linear_classifier(x: Tensor, y: Tensor, num_classes: int) -> Callable[[Tensor], Tensor]:
    """Fit logistic regression on standardised features, by scikit-learn; of several labels each by itself.

    Args:
        x: (N, D) to fit on.
        y: (N,) or (N, C).
        num_classes: C.

    Returns:
        Features (B, D) -> probabilities (B, C), 0 for classes that ``y`` lacks.

    >>> x = torch.tensor([[-1.0], [1.0]])
    >>> linear_classifier(x, torch.tensor([0, 2]), num_classes=3)(x).argmax(1)
    tensor([0, 2])
    """
    regression = LogisticRegression(max_iter=300, tol=1e-3)
    classifier = make_pipeline(StandardScaler(), regression if y.ndim == 1 else OneVsRestClassifier(regression))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Label .* is present in all", UserWarning)  # or in none: then it is 1, or 0
        classifier.fit(x.cpu().numpy(), y.cpu().numpy())

    def classify(queries: Tensor) -> Tensor:
        found = torch.from_numpy(classifier.predict_proba(queries.cpu().numpy())).float()
        if y.ndim == 2:
            return found
        return found.new_zeros(len(queries), num_classes).index_copy_(1, torch.from_numpy(classifier.classes_), found)

    return classify


def few_labels(y: Tensor, seed: int = 0) -> dict[float, Tensor]:
    """Draw 10 % and 1 % of the labels, balanced by class, the smaller draw within the larger.

    A share that comes to fewer images than there are classes is left out: with one image of each class it would be
    more than it says, and in small data sets both shares would be the same draw.

    Args:
        y: (N,) numbers of classes; of (N, C), where an image has several labels, nothing is drawn.
        seed: of the draw; see :func:`~sslmodules.datamodules.labels.balanced_indices`.

    Returns:
        Share of the labels -> indices of the images that keep theirs, ascending.

    >>> y = torch.arange(500) % 10
    >>> {share: len(kept) for share, kept in few_labels(y).items()}
    {0.1: 50}
    """
    if y.ndim == 2:
        return {}
    enough = [share for share in FRACTIONS if round(share * len(y), 6) >= len(y.unique())]
    return {share: balanced_indices(y, share, seed) for share in enough}


def accuracy(scores: Tensor, y: Tensor) -> float:
    """Share of right predictions; with several labels the mean average precision over the classes that occur.

    Args:
        scores: (B, C).
        y: (B,) or (B, C).

    >>> accuracy(torch.tensor([[0.9, 0.1], [0.8, 0.2]]), torch.tensor([0, 1]))
    0.5
    """
    if y.ndim == 1:
        return (scores.argmax(1) == y).float().mean().item()
    return mean_of_occurring(multilabel_average_precision(scores, y.long(), y.shape[1], average="none")).item()


def mean_of_occurring(precision: Tensor) -> Tensor:
    """Mean of the average precisions (C,) of the classes that occur; NaN where none does.

    torchmetrics gives 0 for a class of no image, which would lower the mean; for a class that occurs it is more.

    >>> mean_of_occurring(torch.tensor([0.5, 1.0, 0.0]))
    tensor(0.7500)
    """
    return precision[precision > 0].mean()


def cluster_nmi(features: Tensor, y: Tensor, clusters: int | None = None, seed: int = 0) -> float:
    """Normalised mutual information, in [0, 1], of k-means clusters of L2-normalised features with the labels.

    Args:
        features: (N, D).
        y: (N,); or (N, C), where each combination of labels that occurs is taken as a class.
        clusters: how many; None takes as many as there are classes.
        seed: of scikit-learn's k-means, the best of ten.

    >>> features = torch.tensor([[1.0, 0.0], [1.0, 0.1], [0.0, 1.0], [0.1, 1.0]])
    >>> cluster_nmi(features, torch.tensor([1, 1, 0, 0]))
    1.0
    """
    classes = torch.unique(y, dim=0, return_inverse=True)[1].cpu()
    means = KMeans(clusters or int(classes.max()) + 1, n_init=10, random_state=seed)
    found = means.fit_predict(F.normalize(features.float(), dim=1).cpu().numpy())
    return float(normalized_mutual_info_score(classes.numpy(), found))
