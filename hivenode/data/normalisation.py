"""How raw values become inputs. The daemon, which reads what a model was trained with, needs no arrays for it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Floats = npt.NDArray[np.float32]


class Normalisation(msgspec.Struct, frozen=True):
    """`(value - mean) / scale` by feature; both empty when values are used as they are."""

    mean: tuple[float, ...] = ()
    scale: tuple[float, ...] = ()

    def apply(self, rows: npt.NDArray[np.float64]) -> Floats:
        """Rows of flattened samples to model inputs."""
        import numpy as np

        if not self.mean:
            return rows.astype(np.float32)
        scaled: npt.NDArray[np.float64] = (rows - np.array(self.mean)) / np.array(self.scale)
        return scaled.astype(np.float32)

    def undo(self, rows: Floats) -> Floats:
        """Back to what was asked for, for values that were predicted."""
        import numpy as np

        if not self.mean:
            return rows
        raw: npt.NDArray[np.float64] = rows * np.array(self.scale) + np.array(self.mean)
        return raw.astype(np.float32)


AS_THEY_ARE = Normalisation()
