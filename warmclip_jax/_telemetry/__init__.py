"""What happened, from any state or checkpoint, for programs and for people."""

from warmclip_jax._telemetry._command import listing, metrics_as_json, rows_as_csv
from warmclip_jax._telemetry._figure import plot_records
from warmclip_jax._telemetry._metrics import metrics
from warmclip_jax._telemetry._reading import read_state
from warmclip_jax._telemetry._records import records
from warmclip_jax._telemetry._report import report
from warmclip_jax._telemetry._unless_skipped import unless_skipped
