"""Whether a standby may be moved to, or taken over to, by when it was last known to be what the active is; pure."""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True, slots=True)
class InStep:
    """What following has come to. Times in seconds of a monotonic clock.

    equal_s   when the last round ended with nothing left to bring over; None: never yet
    failure   why rounds fail since, in words; None while they succeed
    """

    equal_s: float | None = None
    failure: str | None = None

    def succeeded(self, now_s: float) -> InStep:
        """After a round that brought everything over."""
        return InStep(now_s)

    def failed(self, why: str) -> InStep:
        """After a round that did not, or a monitor that was lost."""
        return replace(self, failure=why)

    def stale(self, now_s: float, limit_s: float) -> str | None:
        """Why no VM may go to the standby on this, None where it may."""
        if self.equal_s is None:
            return (
                f"it was never brought up to date: {self.failure}"
                if self.failure
                else "it was never brought up to date"
            )
        age_s = now_s - self.equal_s
        if self.failure:
            return f"it could not be brought up to date for {age_s:.1f} s: {self.failure}"
        if age_s > limit_s:
            return f"it was last brought up to date {age_s:.1f} s ago, more than {limit_s:g} s"
        return None
