"""Whether a standby may be moved to, or taken over to, by when it was last known to be what the active is; pure."""

from __future__ import annotations

from dataclasses import dataclass, replace

#: Key of a step's recorded data: VMs are with a standby that was not known to be what the active was, and why.
STALE = "stale"


@dataclass(frozen=True, slots=True)
class InStep:
    """What following has come to. Times in seconds of a monotonic clock.

    equal_s   when the last round ended with nothing left to bring over; None: never yet
    failure   why rounds fail since, in words; None while they succeed
    failed_s  when the first of them had failed
    """

    equal_s: float | None = None
    failure: str | None = None
    failed_s: float = 0.0

    def succeeded(self, now_s: float) -> InStep:
        """After a round that brought everything over."""
        return InStep(now_s)

    def failed(self, why: str, now_s: float) -> InStep:
        """After a round that did not, or a monitor that was lost."""
        return replace(self, failure=why, failed_s=self.failed_s if self.failure else now_s)

    def stale(self, now_s: float, limit_s: float) -> str | None:
        """Why no VM may go to the standby on this, None where it may.

        `now_s` may be an earlier moment, as that of a switch's death: a round that failed after it failed of that.
        """
        failure = self.failure if self.failed_s <= now_s else None
        if self.equal_s is None:
            why = "it was not brought up to date by this coordinator yet"
            return f"{why}: {failure}" if failure else why
        age_s = now_s - self.equal_s
        if failure:
            return f"it could not be brought up to date for {age_s:.1f} s: {failure}"
        if age_s > limit_s:
            return f"it was last brought up to date {age_s:.1f} s ago, more than {limit_s:g} s"
        return None
