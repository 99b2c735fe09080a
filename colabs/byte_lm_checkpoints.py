"""Checkpoints of a training run: whether they can be kept, saving one, going on from the last."""

import contextlib
import dataclasses
import pathlib
import tempfile
from typing import Any

import orbax.checkpoint as ocp
from byte_lm_settings import Settings, UsageError

KEPT = 2


def open_checkpoints(
    folder: pathlib.Path | None, save_every: int
) -> contextlib.AbstractContextManager[ocp.CheckpointManager | None]:
    if folder is None:
        return contextlib.nullcontext()
    options = ocp.CheckpointManagerOptions(
        save_interval_steps=save_every,
        preservation_policy=ocp.checkpoint_managers.LatestN(KEPT),
        # The next step takes the memory of what is being saved.
        enable_async_checkpointing=False,
    )
    try:
        return ocp.CheckpointManager(folder.absolute(), options=options)
    except OSError as error:
        raise UsageError(
            f"cannot keep checkpoints in {folder}: {error.strerror or error}"
        ) from error


def prepare_checkpoints(folder: pathlib.Path | None, save_every: int, settings: Settings) -> None:
    """Finds out before the training, not after it, that nothing can be saved there, or that another
    run is there.
    """
    with open_checkpoints(folder, save_every) as checkpoints:
        if checkpoints is None or steps_done(checkpoints, settings) == settings.steps:
            return
        try:
            # An old checkpoint goes only when the new one is whole.
            require_room(checkpoints, (KEPT + 1 - len(checkpoints.all_steps())) * settings.bytes)
        except OSError as error:
            raise UsageError(
                f"cannot keep checkpoints in {folder}: {error.strerror or error}"
            ) from error


def require_room(checkpoints: ocp.CheckpointManager, size: int) -> None:
    """Raises OSError where no more `size` bytes can be written: Orbax would say it by many
    tracebacks of its threads.
    """
    with tempfile.TemporaryFile(dir=checkpoints.directory) as file:
        file.write(bytes(size))


def save(
    checkpoints: ocp.CheckpointManager, step: int, settings: Settings, state: Any, *, force: bool
) -> None:
    if not (force or checkpoints.should_save(step)):
        return
    parts = {
        "settings": ocp.args.JsonSave(dataclasses.asdict(settings)),
        "state": ocp.args.StandardSave(state),
    }
    try:
        require_room(checkpoints, settings.bytes)
        checkpoints.save(step, args=ocp.args.Composite(**parts), force=True)
    except OSError as error:
        last = checkpoints.latest_step()
        left = "nothing is saved" if last is None else f"the checkpoint of step {last} is whole"
        raise UsageError(
            f"cannot save step {step} in {checkpoints.directory}: {error.strerror or error}; {left}"
        ) from error


def resume(
    checkpoints: ocp.CheckpointManager | None, settings: Settings, state: Any
) -> tuple[int, Any]:
    """The steps done and the state after them: those of the last checkpoint, or 0 and `state` as it
    is.
    """
    step = steps_done(checkpoints, settings) if checkpoints else 0
    return step, restore(
        checkpoints, step, state=ocp.args.StandardRestore(state)
    ) if checkpoints and step else state


def steps_done(checkpoints: ocp.CheckpointManager, settings: Settings) -> int:
    """The steps of the last checkpoint, which must be of a run with these settings; 0 without one."""
    step = checkpoints.latest_step()
    if step is None:
        return 0
    saved = restore(checkpoints, step, settings=ocp.args.JsonRestore())
    for name, value in dataclasses.asdict(settings).items():
        if saved.get(name) != value:
            other = (
                "another text"
                if name == "text"
                else f"--{name.replace('_', '-')} {saved.get(name)}, not {value}"
            )
            raise UsageError(
                f"the checkpoint in {checkpoints.directory} is of a run with {other}: take another "
                "folder"
            )
    return step


def restore(checkpoints: ocp.CheckpointManager, step: int, **part: Any) -> Any:
    (name,) = part
    try:
        return checkpoints.restore(step, args=ocp.args.Composite(**part))[name]
    except Exception as error:  # Orbax and what it is built on have many words for a damaged file.
        folder = checkpoints.directory
        raise UsageError(
            f"cannot read the checkpoint of step {step} in {folder}: move it away, or take another"
        ) from error
