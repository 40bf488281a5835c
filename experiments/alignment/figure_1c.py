"""Figure 1c: classification by cross entropy, where alignment is not an invariant."""

from experiments.alignment._classification import reproduce
from experiments.context import Context
from experiments.registry import experiment

SOURCE = "Radhakrishnan et al. 2020, Figure 1c"


@experiment(
    "alignment/figure_1c",
    title="Alignment is not an invariant of classification by cross entropy",
    source=SOURCE,
)
def figure_1c(context: Context) -> None:
    """Classify 256 images from an aligned start by cross entropy."""
    reproduce(context, "cross_entropy", name="figure_1c", source=SOURCE)
