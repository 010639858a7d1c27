"""The facts about levels and devices that are known before the first round."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np

from hetfl.errors import ConfigurationError
from hetfl.fleet.devices import Devices
from hetfl.fleet.numbers import FloatArray, IntArray


@dataclass(frozen=True)
class Outlook:
    """What a level costs each client, as far as it is known before a run, for L levels and N clients.

    Attributes:
        names: of the levels, the global model's first.
        entries_L: number of entries of the global model that a client of each level holds, shape (L,).
        seconds_LN: predicted seconds of a round of each client at each level, at its usual speed, with dense updates.
        devices: the clients' devices.
        deadline: simulated seconds after which updates are dropped; None: no deadline.
    """

    names: tuple[str, ...]
    entries_L: IntArray
    seconds_LN: FloatArray
    devices: Devices
    deadline: float | None = None

    @property
    def order_L(self) -> IntArray:
        """The positions of the levels, from the largest level to the smallest."""
        order: IntArray = np.argsort(-self.entries_L, kind="stable")
        return order

    def position(self, level: str, what: str) -> int:
        """Return the position of a level.

        Args:
            level: its name.
            what: names the setting, for the message.

        Raises:
            ConfigurationError: there is no such level.
        """
        if level not in self.names:
            raise ConfigurationError(f"Expected {what} to be a level among {list(self.names)} but got {level!r}")
        return self.names.index(level)

    def largest_within(self, seconds: float) -> IntArray:
        """Return each client's largest level whose predicted round takes at most so many seconds, shape (N,).

        A client for which every level takes longer gets its fastest level.
        """
        ordered_LN = self.seconds_LN[self.order_L]
        fits_LN = ordered_LN <= seconds * (1 + 1e-12)  # the time of a client at its own level fits, whatever rounding
        first_N = np.where(fits_LN.any(axis=0), fits_LN.argmax(axis=0), ordered_LN.argmin(axis=0))
        levels_N: IntArray = self.order_L[first_N]
        return levels_N

    def check_distinct(self, name: str) -> None:
        """Refuse levels that hold equally many entries, for a policy that chooses among them by what they earn.

        Args:
            name: of the policy.

        Raises:
            ConfigurationError: there are fewer than two levels, or two hold equally many entries.
        """
        if len(self.names) < 2:
            raise ConfigurationError(f"Expected at least 2 levels for {name} to choose from but got {len(self.names)}")
        for first, second in itertools.pairwise(self.order_L):
            if self.entries_L[first] == self.entries_L[second]:
                raise ConfigurationError(
                    f"Expected levels of different sizes for {name} but got {self.names[first]} and "
                    f"{self.names[second]}, which both hold {self.entries_L[first]} entries"
                )
