"""What a task is scored by; numpy in, plain numbers out."""

import math

import numpy as np
from scipy import stats
from sklearn import metrics

LOWER_IS_BETTER = frozenset({"loss", "perplexity"})


def classification(
    predictions: np.ndarray, targets: np.ndarray, losses: np.ndarray, positive: int | None
) -> dict[str, float]:
    """Accuracy, F1, Matthews' correlation and the mean cross-entropy.

    Args:
        predictions: Class numbers, shape (N,).
        targets: Class numbers, shape (N,).
        losses: Cross-entropy of each example in nats, shape (N,).
        positive: The class whose F1 counts; None takes the mean F1 of the classes that occur.
    """
    if positive is None:
        f1 = metrics.f1_score(targets, predictions, average="macro", zero_division=0)
    else:
        f1 = metrics.f1_score(targets == positive, predictions == positive, zero_division=0)
    alone = len(np.union1d(predictions, targets)) == 1
    return {
        "accuracy": float(metrics.accuracy_score(targets, predictions)),
        "f1": float(f1),
        "matthews": 0.0 if alone else float(metrics.matthews_corrcoef(targets, predictions)),
        "loss": float(np.mean(losses, dtype=np.float64)),
    }


def regression(predictions: np.ndarray, targets: np.ndarray, losses: np.ndarray) -> dict[str, float]:
    """Pearson's and Spearman's correlation and the mean squared error; all inputs have shape (N,).

    A correlation with a constant is undefined and reported as 0: such a model orders nothing.
    """
    predictions, targets = predictions.astype(np.float64), targets.astype(np.float64)
    constant = len(targets) < 2 or np.ptp(predictions) == 0 or np.ptp(targets) == 0
    return {
        "pearson": 0.0 if constant else float(stats.pearsonr(predictions, targets).statistic),
        "spearman": 0.0 if constant else float(stats.spearmanr(predictions, targets).statistic),
        "loss": float(np.mean(losses, dtype=np.float64)),
    }


def language(losses: np.ndarray, tokens: np.ndarray) -> dict[str, float]:
    """Mean negative log-likelihood of a target token in nats, and its exponential.

    Args:
        losses: Mean over the target tokens of each example, shape (N,).
        tokens: How many target tokens each example has, shape (N,).
    """
    loss = float(np.average(losses.astype(np.float64), weights=tokens))
    return {"perplexity": math.exp(loss) if loss < 700 else math.inf, "loss": loss}


def higher_is_better(metric: str) -> bool:
    """Whether more of the metric is better (all but loss and perplexity)."""
    return metric not in LOWER_IS_BETTER
