"""The checker of rings: a writer that keeps the order is found right, two of them are not."""

from __future__ import annotations

import struct

import pytest

from tests.support.rings import Ring

NUM, AVAIL, USED = 8, 0, 64


class Guest:
    def __init__(self) -> None:
        self.memory = bytearray(256)
        self.ring = Ring("vm0 ring 1", self.memory, NUM, AVAIL, USED)
        self.made = 0

    def make_available(self, head: int) -> None:
        struct.pack_into("<H", self.memory, AVAIL + 4 + 2 * (self.made % NUM), head)
        self.made = (self.made + 1) & 0xFFFF
        struct.pack_into("<H", self.memory, AVAIL + 2, self.made)


class Writer:
    def __init__(self, guest: Guest) -> None:
        self.guest = guest
        (self.next,) = struct.unpack_from("<H", guest.memory, USED + 2)

    def use(self, head: int | None = None) -> None:
        (turn,) = struct.unpack_from("<H", self.guest.memory, AVAIL + 4 + 2 * (self.next % NUM))
        entry = USED + 4 + 8 * (self.next % NUM)
        struct.pack_into("<II", self.guest.memory, entry, turn if head is None else head, 60)
        self.next = (self.next + 1) & 0xFFFF
        struct.pack_into("<H", self.guest.memory, USED + 2, self.next)


@pytest.fixture
def guest() -> Guest:
    made = Guest()
    made.ring.look()
    return made


def test_one_writer_and_another_after_it(guest: Guest) -> None:
    for turn in range(3):
        writer = Writer(guest)
        for number in range(40):
            guest.make_available((5 * number + turn) % NUM)
            writer.use()
            guest.ring.look()
    assert guest.ring.wrong == []
    assert guest.ring.checked == 120
    assert guest.ring.missed == 0


def test_two_writers_set_the_index_back(guest: Guest) -> None:
    first, second = Writer(guest), Writer(guest)
    for number in range(6):
        guest.make_available(number)
    for _ in range(4):
        first.use()
    guest.ring.look()
    second.use()
    guest.ring.look()
    assert "used->idx went from 4 to 1" in guest.ring.wrong[0]


def test_a_look_that_comes_after_more_than_a_ring_is_no_second_writer(guest: Guest) -> None:
    writer = Writer(guest)
    for number in range(3 * NUM):
        guest.make_available(number % NUM)
        writer.use()
    guest.ring.look()
    assert (guest.ring.wrong, guest.ring.missed, guest.ring.checked) == ([], 3 * NUM, 0)
    guest.make_available(1)
    writer.use()
    guest.ring.look()
    assert (guest.ring.wrong, guest.ring.checked) == ([], 1)


def test_an_index_beyond_what_was_made_available(guest: Guest) -> None:
    guest.make_available(0)
    writer = Writer(guest)
    for _ in range(3 * NUM):
        writer.use()
    guest.ring.look()
    assert "used->idx went from 0 to 24, avail->idx is 1" in guest.ring.wrong[0]


def test_a_descriptor_that_is_given_back_twice(guest: Guest) -> None:
    writer = Writer(guest)
    for head in (3, 4):
        guest.make_available(head)
    writer.use()
    writer.use(3)
    guest.ring.look()
    assert guest.ring.wrong == ["vm0 ring 1: entry 1: descriptor 3 was given back, 4 was its turn"]


def test_an_entry_that_the_guest_is_writing_anew(guest: Guest) -> None:
    """Between the entry and the index it may take a while: what was given back is looked at against another one."""
    writer = Writer(guest)
    for head in range(NUM):
        guest.make_available(head)
    writer.use()
    struct.pack_into("<H", guest.memory, AVAIL + 4, 5)
    guest.ring.look()
    assert (guest.ring.wrong, len(guest.ring.doubtful)) == ([], 1)
    guest.make_available(5)
    guest.ring.look()
    guest.ring.end()
    assert (guest.ring.wrong, guest.ring.missed) == ([], 1)


def test_a_full_ring_whose_oldest_entry_is_given_back_out_of_turn(guest: Guest) -> None:
    writer = Writer(guest)
    for head in range(NUM):
        guest.make_available(head)
    writer.use(5)
    guest.ring.look()
    guest.ring.look()
    guest.ring.end()
    assert guest.ring.wrong == ["vm0 ring 1: entry 0: descriptor 5 was given back, 0 was its turn"]
