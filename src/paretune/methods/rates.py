"""Learning rates for a budget: the fewer weights of a mask there are, the larger their steps have to be."""

from paretune.methods.base import Method

AT = 0.005  # the share of the model that every method's range is for
# Fitted to one seed on cola, random and FISH masks of 0.02 % to 0.5 % (docs/results/small_budgets.md). It
# leads from there to about the range of full fine-tuning at 100 %.
MASK_POWER = 0.75
SMALLEST = 0.0002  # below this share nothing was measured, and the power would soon lead to rates above 1


def learning_rates(method: Method, share: float | None) -> tuple[float, ...]:
    """The range of rates to try for a share of the model, ascending.

    Args:
        method: With its settings, where these decide about the range.
        share: Trained weights over the model's, the head in neither; None where it is not known.

    Returns:
        The method's range times ``(0.5 % / share) ** method.rate_power``, to two digits. A share below
        0.02 % counts as 0.02 %, one above 100 % as 100 %.
    """
    if share is None or not method.rate_power:
        return method.learning_rates
    factor = (AT / min(max(share, SMALLEST), 1.0)) ** method.rate_power
    return tuple(float(f"{rate * factor:.2g}") for rate in method.learning_rates)
