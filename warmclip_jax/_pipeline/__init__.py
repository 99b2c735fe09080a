"""Where clip, optimizer and schedule meet."""

from warmclip_jax._pipeline._pipeline import PipelineState, pipeline
