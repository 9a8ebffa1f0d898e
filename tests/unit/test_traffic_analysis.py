"""The arithmetic of interruptions, held against what was done to each packet."""

from array import array
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from upgrader.lab.traffic.analysis import (
    UNSENT,
    ClockMap,
    ClockSample,
    Direction,
    FlowTrace,
    ReceiverRecord,
    SenderRecord,
    Window,
    percentile,
    with_control,
)

MS = 1_000_000
RATE = 1000
START = 50_000 * MS
FAR_CLOCK = 7_000_000 * MS  # the receiver's clock stands elsewhere


def trace(
    arrivals: list[tuple[int, int]],
    total: int,
    *,
    lateness_us: dict[int, int] | None = None,
    receiver_clock: ClockMap | None = None,
) -> FlowTrace:
    """A flow of `total` packets at 1 kpps from (sequence number, arrival in ms after the start)."""
    late = array("I", [0] * total)
    for sequence, value in (lateness_us or {}).items():
        late[sequence] = value
    times = array("Q", [FAR_CLOCK + at * MS for _, at in arrivals])
    receiver = ReceiverRecord(array("Q", [sequence for sequence, _ in arrivals]), times)
    sender = SenderRecord(RATE, START, late)
    clock = receiver_clock or ClockMap((ClockSample(START, FAR_CLOCK, 0),))
    return FlowTrace("vm0", "fabric", Direction.FROM_FABRIC, sender, receiver, receiver_clock=clock)


def steady(total: int, missing: range | set[int] = range(0)) -> list[tuple[int, int]]:
    return [(i, i) for i in range(total) if i not in missing]


def test_nothing_happened() -> None:
    figures = trace(steady(100), 100).figures()
    assert figures.undisturbed
    assert (figures.sent, figures.received, figures.gap_us) == (100, 100, 1000)
    assert (figures.loss_time_us, figures.timestamp_time_us) == (0, 0)


def test_a_hole_has_both_reset_times() -> None:
    figures = trace(steady(100, range(40, 60)), 100).figures()
    assert figures.lost == 20
    assert figures.loss_time_us == 20_000
    assert figures.timestamp_time_us == figures.gap_us == 21_000


def test_the_longest_of_several_interruptions_counts() -> None:
    flow = trace(steady(1000, {*range(100, 110), *range(500, 530), *range(900, 905)}), 1000)
    assert flow.figures().timestamp_time_us == 31_000


def test_losses_close_together_are_one_interruption() -> None:
    figures = trace(steady(1000, {500, 530}), 1000).figures()
    assert figures.gap_us == 2000
    assert figures.timestamp_time_us == 32_000


@pytest.mark.parametrize("missing", [range(30), range(70, 100)])
def test_silence_at_either_end_is_a_gap(missing: range) -> None:
    figures = trace(steady(100, missing), 100).figures()
    assert figures.gap_us == 30_000
    assert figures.lost == 30
    assert figures.timestamp_time_us >= 30_000


def test_a_vm_that_is_dead_after_its_move_has_a_gap_to_the_end_of_the_run() -> None:
    flow = trace(steady(5000, range(1000, 5000)), 5000)
    for inside in (window(950, 1250), window(999, 1001), window(2000, 2100), window(4900, 9000)):
        figures = flow.figures(inside)
        assert figures.gap_us == figures.network_gap_us == 4_000_000


def test_a_vm_that_lives_only_after_its_move_has_a_gap_from_the_begin_of_the_run() -> None:
    flow = trace(steady(5000, range(4000)), 5000)
    for inside in (window(-200, 10), window(2000, 2100), window(3950, 4250)):
        figures = flow.figures(inside)
        assert figures.gap_us == figures.network_gap_us == 4_000_000


def test_a_packet_that_was_held_back_does_not_move_the_end() -> None:
    flow = trace([*steady(1000, {50}), (50, 2000)], 5000)  # it came out of a queue after the VM had died
    assert flow.figures(window(950, 1250)).gap_us == 1_001_000
    assert flow.figures().gap_us == 2_999_000  # from it to when the last packet was due


def test_a_first_packet_that_was_held_back_leaves_the_arrivals_in_order() -> None:
    flow = trace([(i, i) for i in range(3, 500)] + [(2, 600)] + [(i, 600 + i - 499) for i in range(500, 1000)], 1000)
    assert flow.figures(window(0, 100)).gap_us == 3000  # two packets missing, and one that came late
    assert flow.figures().gap_us == 101_000


def test_dead_throughout_has_the_whole_run_as_its_gap_in_every_window() -> None:
    flow = trace([], 5000)
    assert flow.figures(window(950, 1250)).gap_us == 5_000_000
    assert flow.figures(window(6000, 7000)).gap_us == 0  # nothing fell due there


def test_what_the_kernel_refused_to_a_dead_ring_is_silence() -> None:
    """A guest whose transmit ring nobody serves has its sends refused once the buffers are full."""
    flow = trace(steady(1000, range(500, 1000)), 1000, lateness_us=dict.fromkeys(range(700, 1000), UNSENT))
    figures = flow.figures(window(480, 520))
    assert figures.gap_us == figures.network_gap_us == 500_000


def test_silence_throughout() -> None:
    figures = trace([], 100).figures()
    assert (figures.sent, figures.lost, figures.received) == (100, 100, 0)
    assert figures.gap_us == figures.network_gap_us == 100_000
    assert figures.timestamp_time_us > 0


def test_what_the_kernel_refused_is_neither_sent_nor_lost() -> None:
    unsent = dict.fromkeys(range(10, 15), UNSENT)
    figures = trace(steady(100, {*range(10, 15), 50}), 100, lateness_us=unsent).figures()
    assert (figures.sent, figures.unsent, figures.lost, figures.received) == (95, 5, 1, 94)
    assert figures.late_sends == 0
    assert figures.gap_us == 6000


def test_reordered_by_rfc_4737_counts_the_overtaken_not_the_overtaking() -> None:
    order = [0, 1, 3, 4, 5, 2, 6, 8, 7]
    figures = trace([(sequence, at) for at, sequence in enumerate(order)], 9).figures()
    assert figures.reordered == 2
    assert (figures.lost, figures.duplicated) == (0, 0)


def test_a_late_copy_is_a_duplicate_and_not_a_reorder() -> None:
    figures = trace([(0, 0), (1, 1), (2, 2), (0, 3), (0, 4), (3, 5)], 4).figures()
    assert (figures.duplicated, figures.reordered, figures.lost) == (2, 0, 0)


def test_a_sender_that_stalled_is_not_the_network() -> None:
    late = {i: (70 - i) * 1000 for i in range(40, 70)}
    arrivals = [(i, 70 if 40 <= i < 70 else i) for i in range(100)]
    figures = trace(arrivals, 100, lateness_us=late).figures()
    assert figures.gap_us == 31_000
    assert figures.network_gap_us == 1000
    assert figures.late_sends == 29  # the last of them by one millisecond only
    assert figures.worst_late_us == 30_000


def test_sequence_numbers_never_scheduled_are_left_out() -> None:
    figures = trace([*steady(10), (10, 10), (2**60, 11)], 10).figures()
    assert (figures.sent, figures.received, figures.duplicated) == (10, 10, 0)


def window(low_ms: int, high_ms: int) -> Window:
    return Window("move", START + low_ms * MS, START + high_ms * MS)


def test_a_window_sees_its_own_packets_only() -> None:
    flow = trace([*steady(300, {*range(50, 60), *range(200, 205)}), (210, 300)], 300)
    first, second, between = (flow.figures(window(*w)) for w in ((40, 80), (190, 220), (100, 150)))
    assert (first.sent, first.lost, first.gap_us, first.duplicated) == (40, 10, 11_000, 0)
    assert (second.sent, second.lost, second.gap_us, second.duplicated) == (30, 5, 6000, 1)
    assert (between.sent, between.lost, between.gap_us) == (50, 0, 1000)


def test_a_gap_that_reaches_out_of_the_window_counts_whole() -> None:
    flow = trace(steady(300, range(100, 200)), 300)
    for inside in (window(90, 110), window(140, 160), window(190, 210)):
        assert flow.figures(inside).gap_us == 101_000


def test_windows_outside_the_run_are_empty() -> None:
    figures = trace(steady(100), 100).figures(window(-500, -400))
    assert (figures.sent, figures.received, figures.lost) == (0, 0, 0)


def test_windows_are_translated_to_the_sender_and_the_receiver() -> None:
    samples = (ClockSample(START, FAR_CLOCK, 0),)
    sender = SenderRecord(RATE, FAR_CLOCK, array("I", [0] * 100))  # this sender's clock is the far one
    receiver = ReceiverRecord(
        array("Q", [i for i in range(100) if not 40 <= i < 50]),
        array("Q", [START + i * MS for i in range(100) if not 40 <= i < 50]),
    )
    flow = FlowTrace("vm0", "fabric", Direction.TO_FABRIC, sender, receiver, sender_clock=ClockMap(samples))
    figures = flow.figures(window(30, 60))
    assert (figures.sent, figures.lost, figures.gap_us) == (30, 10, 11_000)


def test_widened() -> None:
    wide = Window("x", 10 * MS, 20 * MS).widened(5, 7)
    assert (wide.label, wide.start_ns, wide.end_ns) == ("x", 5 * MS, 27 * MS)


@dataclass(frozen=True)
class Fate:
    copies: int
    delay_ms: int


fates = st.lists(st.builds(Fate, st.sampled_from([0, 1, 1, 1, 2, 3]), st.integers(0, 5)), min_size=1, max_size=80)


@given(fates)
def test_the_sums_hold_whatever_happens_to_each_packet(packets: list[Fate]) -> None:
    sent = [(i, i + fate.delay_ms + copy) for i, fate in enumerate(packets) for copy in range(fate.copies)]
    arrivals = sorted(sent, key=lambda arrival: arrival[1])
    flow = trace(arrivals, len(packets))
    figures = flow.figures()
    assert figures.lost == sum(fate.copies == 0 for fate in packets)
    assert figures.received + figures.lost == figures.sent == len(packets)
    assert figures.duplicated == sum(max(0, fate.copies - 1) for fate in packets)
    first = list(dict.fromkeys(sequence for sequence, _ in arrivals))
    assert figures.reordered == sum(any(other > s for other in first[:i]) for i, s in enumerate(first))
    assert flow.lost_sequences == tuple(i for i, fate in enumerate(packets) if not fate.copies)
    # two halves make a whole, wherever the cut
    for cut in range(len(packets) + 1):
        halves = (flow.figures(window(0, cut)), flow.figures(window(cut, len(packets))))
        for name in ("sent", "received", "lost", "duplicated", "reordered"):
            assert sum(getattr(half, name) for half in halves) == getattr(figures, name)


@given(st.integers(-(10**15), 10**15), st.integers(-500, 500), st.integers(0, 10**12))
def test_a_drifting_clock_is_followed(offset_ns: int, drift_ppm: int, at_ns: int) -> None:
    def agent(host_ns: int) -> int:
        return host_ns + offset_ns + host_ns * drift_ppm // 1_000_000

    clock = ClockMap(tuple(ClockSample(t, agent(t), 100) for t in (0, 10**12 // 2, 10**12)))
    assert abs(clock.to_agent(at_ns) - agent(at_ns)) <= 2
    assert clock.error_ns == 100


def test_one_clock_sample_is_an_offset_and_none_is_the_same_clock() -> None:
    assert ClockMap().to_agent(5) == 5
    assert ClockMap((ClockSample(100, 1100, 7),)).to_agent(40) == 1040


def test_percentile_is_a_measured_value() -> None:
    values = [5.0, 1.0, 4.0, 2.0, 3.0]
    assert [percentile(values, q) for q in (0, 20, 50, 90, 100)] == [1.0, 1.0, 3.0, 5.0, 5.0]
    for bad in (([], 50), ([1.0], 101), ([1.0], -1)):
        with pytest.raises(ValueError, match="percentile"):
            percentile(*bad)


def test_control_gaps_go_to_their_own_flow() -> None:
    mine, calm = trace(steady(100, {5}), 100).figures(), trace(steady(100), 100).figures()
    assert with_control([mine], [calm])[0].control_gap_us == 1000
    assert with_control([mine], [])[0].control_gap_us is None
    assert with_control([mine], [calm])[0].as_json()["direction"] == "from_fabric"


def test_records_are_decoded_as_the_agent_lays_them_out() -> None:
    packed = (7).to_bytes(8, "little") + (900).to_bytes(8, "little") + (8).to_bytes(8, "little") + b"\xff" * 8
    sequences, times = ReceiverRecord.columns_from(packed)
    assert (list(sequences), list(times)) == ([7, 8], [900, 2**64 - 1])
    assert list(SenderRecord.lateness_from(b"\x01\0\0\0\xff\xff\xff\xff")) == [1, UNSENT]
    assert SenderRecord(RATE, START, array("I", [0, 0])).due_ns(1) == START + MS
