"""Checkpoints of the train state: asynchronous, atomic, the last ones and the best one kept."""

import os
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import AnyPreservationPolicy, BestN, LatestN

from jaxlab.tasks.base import Quality


class Checkpoints:
    """An orbax `CheckpointManager` over a folder.

    Args:
      folder: where the checkpoints are; made if it is missing.
      quality: the metric that decides which checkpoint is the best.
      keep: how many of the latest are kept beside the best.
    """

    def __init__(self, folder: str | os.PathLike, quality: Quality, keep: int = 1):
        if keep < 1:
            raise ValueError(f"checkpoint: keep={keep} must be 1 or more")
        best = BestN(
            get_metric_fn=lambda metrics: metrics[quality.name],
            reverse=quality.mode == "min",
            n=1,
            keep_checkpoints_without_metrics=False,
        )
        self._manager = ocp.CheckpointManager(
            Path(folder).absolute(),
            # Without it `seconds` warns that it could not restore, which it does not mean to.
            item_handlers=ocp.StandardCheckpointHandler(),
            options=ocp.CheckpointManagerOptions(
                preservation_policy=AnyPreservationPolicy([LatestN(keep), best]),
                enable_async_checkpointing=True,
            ),
        )

    def latest(self) -> int | None:
        """The step of the last complete checkpoint, or None."""
        return self._manager.latest_step()

    def save(
        self,
        step: int,
        state: Any,
        metrics: dict[str, float] | None = None,
        *,
        seconds: float | None = None,
    ) -> None:
        """Starts writing the state; returns before it is on disk.

        Args:
          step: of the state.
          state: tree of arrays.
          metrics: what decides whether it is the best; None is never the best.
          seconds: that the run has taken so far; None is unknown.
        """
        self._manager.save(
            step,
            args=ocp.args.StandardSave(_arrays(state)),
            metrics=metrics,
            force=True,
            custom_metadata={"seconds": seconds},
        )

    def seconds(self, step: int) -> float | None:
        """What `save` was told that the run had taken; None in checkpoints that do not say it."""
        return (self._manager.metadata(step).custom_metadata or {}).get("seconds")

    def restore(self, step: int, like: Any) -> Any:
        """Reads the state of a step.

        Args:
          step: of an existing checkpoint.
          like: `jax.ShapeDtypeStruct`s with shardings, in the structure of the state. Classes and
            static fields come from it: a checkpoint holds buffers only.
        """
        restored = self._manager.restore(step, args=ocp.args.StandardRestore(_arrays(like)))
        return jax.tree.unflatten(jax.tree.structure(like), [restored[k] for k in sorted(restored)])

    def wait(self) -> None:
        """Returns when everything saved is on disk."""
        self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits, and gives the manager's threads back."""
        self.wait()
        self._manager.close()


def _arrays(tree: Any) -> dict[str, Any]:
    # Leaves by number and path: orbax then needs to know no class of ours, and a reader sees names.
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {
        f"{i:05d}{jax.tree_util.keystr(path, simple=True, separator='.')}": leaf
        for i, (path, leaf) in enumerate(leaves)
    }
