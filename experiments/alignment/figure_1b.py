"""Figure 1b: classification by mean squared error, where alignment is not an invariant."""

from experiments.alignment._classification import reproduce
from experiments.context import Context
from experiments.registry import experiment

SOURCE = "Radhakrishnan et al. 2020, Figure 1b"


@experiment(
    "alignment/figure_1b",
    title="Alignment is not an invariant of classification by mean squared error",
    source=SOURCE,
)
def figure_1b(context: Context) -> None:
    """Classify 256 images from an aligned start by mean squared error."""
    reproduce(context, "squared", name="figure_1b", source=SOURCE)
