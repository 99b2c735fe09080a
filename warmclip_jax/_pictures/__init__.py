"""What schedules look like."""

from warmclip_jax._pictures._chart import chart
from warmclip_jax._pictures._plot import matplotlib_figure, plot
from warmclip_jax._pictures._sampling import sampled
