"""The steps of a run, one file each, named after the verb."""

from upgrader.core.plan import StepKind
from upgrader.steps.attach_standby import AttachStandby
from upgrader.steps.base import Context, Data, Step
from upgrader.steps.catch_up import CatchUp
from upgrader.steps.close_window import CloseWindow
from upgrader.steps.move_control import MoveControl
from upgrader.steps.move_vm import MoveVm
from upgrader.steps.open_window import OpenWindow
from upgrader.steps.promote import Promote
from upgrader.steps.prove import Compare, Prove
from upgrader.steps.replicate import Replicate
from upgrader.steps.retire import Retire
from upgrader.steps.soak import Soak
from upgrader.steps.start_standby import StartStandby
from upgrader.steps.take_over import TakeOver

STEPS: dict[StepKind, Step] = {
    StepKind.START_STANDBY: StartStandby(),
    StepKind.REPLICATE: Replicate(),
    StepKind.PROVE: Prove(),
    StepKind.COMPARE: Compare(),
    StepKind.ATTACH_STANDBY: AttachStandby(),
    StepKind.OPEN_WINDOW: OpenWindow(),
    StepKind.MOVE_VM: MoveVm(),
    StepKind.CATCH_UP: CatchUp(),
    StepKind.CLOSE_WINDOW: CloseWindow(),
    StepKind.MOVE_CONTROL: MoveControl(),
    StepKind.PROMOTE: Promote(),
    StepKind.SOAK: Soak(),
    StepKind.RETIRE: Retire(),
    StepKind.TAKE_OVER: TakeOver(),
}

__all__ = ["STEPS", "Context", "Data", "Step"]
